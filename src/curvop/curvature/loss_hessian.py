"""The Hessian of torch's losses in the prediction: its diagonal, or its scale.

Element-wise losses have a diagonal one; that of cross-entropy is
``a (diag(p) - p pᵀ)`` for each target, with ``p`` the softmax and a scale ``a`` that
depends on the options (weights, ignored targets, smoothing). One Hessian-vector product
of the user's own loss gives either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop.derivatives import Aux, Outputs, RiskDifferentiation
from curvop.risk import CONVEX, Loss, Parameters, by_class, by_class_back

SOFTMAX = {nn.CrossEntropyLoss, F.cross_entropy}
ELEMENTWISE = CONVEX - SOFTMAX - {nn.MultiLabelMarginLoss, nn.MultiMarginLoss}


def diagonal_of_terms(loss: Loss, f: Tensor, y: Any, way: RiskDifferentiation) -> Tensor:
    """``h`` with ``∇²_f ℓ = diag(h)`` of an element-wise loss, in the shape of ``f``."""
    return _product(loss, f, y, torch.ones_like(f), way)


def softmax_scale(loss: Loss, f: Tensor, y: Any, way: RiskDifferentiation) -> Tensor:
    """``a`` of each target, from a product at logits zero, where ``p = 1/C``."""
    first = torch.zeros_like(by_class(f))
    C = first.shape[-1]
    if C == 1:
        return first[..., 0]
    first[..., 0] = 1.0
    column = _product(loss, torch.zeros_like(f), y, by_class_back(first, f), way)
    return by_class(column)[..., 0] / ((1 / C) * (1 - 1 / C))


def _product(loss: Loss, f: Tensor, y: Any, u: Tensor, way: RiskDifferentiation) -> Tensor:
    """``∇²_f ℓ u`` for the summed loss of a batch."""

    def total(outputs: Sequence[Tensor]) -> tuple[Outputs, Aux]:
        return (loss.total(outputs[0], y),), ()

    at = Parameters((f,), None, lambda p, X: p, functional=True)
    (out,), _ = way.hessian(total, at, [u[None]], None)
    return out[0].detach()
