"""Dense derivatives by plain autograd: one backward pass for each row.

Not by ``torch.func``, whose ``hessian`` is wrong through norm layers
(pytorch/functorch#534), and not batched, which group norm does not support.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient(scalar: Tensor, x: Tensor, *, create_graph: bool) -> Tensor:
    """``∇ scalar`` in the shape of ``x``; zero if the scalar does not depend on it."""
    return _gradients(scalar, [x], create_graph=create_graph)[0]


def jacobian(outputs: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """``∂ outputs / ∂ inputs``, all flattened: ``[a, N]``."""
    rows = [_flat(_gradients(o, inputs, create_graph=False)) for o in outputs.flatten()]
    N = sum(x.numel() for x in inputs)
    return torch.stack(rows) if rows else outputs.new_zeros(0, N)


def hessian(scalar: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """``∇² scalar``, symmetric, in flattened inputs: ``[N, N]``."""
    H = jacobian(_flat(_gradients(scalar, inputs, create_graph=True)), inputs)
    return (H + H.T) / 2


def second(g: Tensor, x: Tensor, *, num_groups: int) -> Tensor:
    """The diagonal blocks of ``∂g / ∂x``, all others being zero: ``[groups, c, c]``.

    One pass differentiates an entry of every group.
    """
    columns = g.reshape(num_groups, -1).unbind(1)
    rows = [gradient(c.sum(), x, create_graph=False) for c in columns]
    B = torch.stack([row.reshape(num_groups, -1) for row in rows], 1)
    return (B + B.mT) / 2


def _gradients(
    scalar: Tensor, inputs: Sequence[Tensor], *, create_graph: bool
) -> Sequence[Tensor]:
    if not scalar.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return torch.autograd.grad(
        scalar,
        inputs,
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
