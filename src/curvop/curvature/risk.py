"""The empirical risk itself, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.determinism import gradient_over_data
from curvop.curvature.linearization import LinearizedLinearOperator
from curvop.curvature.reduction import total_divisor
from curvop.curvature.surroundings import surroundings


def curvature(H: Any, who: str) -> CurvatureLinearOperator:
    """The curvature operator that knows model, loss and data.

    Raises:
        TypeError: If it is no such operator.
    """
    op = H._op if isinstance(H, LinearizedLinearOperator) else H
    if not isinstance(op, CurvatureLinearOperator):
        raise TypeError(
            f"{who} needs a curvature operator such as HessianLinearOperator(model, "
            f"loss_func, params, data), which knows model and data; got {type(H).__name__}."
        )
    return op


def loss_and_gradient(op: CurvatureLinearOperator) -> tuple[float, Tensor]:
    """The loss over all data, and its gradient ``[N]``, at the present parameters.

    They may be infinite or ``nan``, as while a training diverges.
    """
    with surroundings(op._data):
        *blocks, loss, share = gradient_over_data(op)
        Z = total_divisor(op._loss.reduction, share)
        gradient = torch.cat([b.reshape(-1) for b in blocks]) / Z
    return float(loss / Z), gradient.to(op.dtype)
