"""Plain autograd, for derivatives that are taken row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(
    scalar: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False
) -> Sequence[Tensor]:
    """The gradient of a scalar, zero if it does not depend on the inputs; keeps the graph.

    Without a cotangent: to check it takes torch as long as a small backward pass.
    """
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
