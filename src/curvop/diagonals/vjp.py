"""Vector-Jacobian products of many columns through one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd.graph import GradientEdge

from curvop.layers import Call


@dataclass(frozen=True)
class Input:
    """What is differentiated by.

    Attributes:
        at: Where the gradient arrives.
        shape: Of the gradient.
        like: A tensor of its type, on its device.
    """

    at: GradientEdge | Tensor
    shape: Size
    like: Tensor

    @classmethod
    def of(cls, call: Call, like: Tensor) -> Input:
        """The output of a layer."""
        assert call.edge is not None
        return cls(call.edge, call.shape, like)

    def zeros(self, k: int) -> Tensor:
        """``k`` columns of zeros."""
        return torch.zeros((k, *self.shape), dtype=self.like.dtype, device=self.like.device)


def vjp_columns(
    outputs: Sequence[Tensor], inputs: Mapping[int, Input], U: Sequence[Tensor]
) -> dict[int, Tensor]:
    """``Jᵀ u`` for columns ``[k, *m_i]``: ``[k, *n_i]``, all at once where vmap can."""
    k = len(U[0])
    pairs = [(o, u) for o, u in zip(outputs, U, strict=True) if o.requires_grad]
    if not pairs:
        return {e: i.zeros(k) for e, i in inputs.items()}
    outs, us = zip(*pairs, strict=True)
    at: list[Any] = [i.at for i in inputs.values()]

    def pulled(us: Sequence[Tensor], **options: Any) -> Sequence[Tensor | None]:
        return torch.autograd.grad(
            outs, at, us, retain_graph=True, allow_unused=True, **options
        )

    def stacked() -> list[Tensor | None]:
        columns = [pulled([u[r] for u in us]) for r in range(k)]
        return [
            None if c[0] is None else torch.stack(c) for c in zip(*columns, strict=True)
        ]

    found: Sequence[Tensor | None]
    try:
        found = pulled(us, is_grads_batched=True) if k > 1 else stacked()
    except RuntimeError:  # no vmap through this graph
        found = stacked()
    return {
        e: i.zeros(k) if g is None else g
        for (e, i), g in zip(inputs.items(), found, strict=True)
    }
