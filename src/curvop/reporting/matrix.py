"""The matrix of a report: an operator over the target, linearised for many products."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from curvop.curvature import (
    CurvatureLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
)
from curvop.operators import LinearOperator
from curvop.reporting.conversion import converted
from curvop.reporting.findings import Settings
from curvop.reporting.resources import free_memory
from curvop.reporting.target import Target

OPERATORS: dict[str, type[CurvatureLinearOperator]] = {
    "hessian": HessianLinearOperator,
    "ggn": GGNLinearOperator,
}
EXPECTED_PRODUCTS = 800  # of a whole report, for the decision what to keep
FEW_PRODUCTS, SHORT = 20, 3.0  # for which, or seconds, there is no use in it
SHARE_OF_MEMORY = 0.25  # that the linearised matrix may keep


class Matrices(NamedTuple):
    """What a report looks at.

    Attributes:
        A: The matrix, looked at: its data was passed over twice.
        gauss_newton: Makes the GGN, for numbers that need a psd matrix; ``None`` if ``A``
            is one, or the loss is not convex in the prediction.
    """

    A: CurvatureLinearOperator
    gauss_newton: Callable[[], CurvatureLinearOperator] | None


def matrices(target: Target, settings: Settings, notes: list[str]) -> Matrices:
    """Operators over the target, converted as the settings say.

    Args:
        target: What the report is about.
        settings: How it is made.
        notes: Where to tell of half precision.
    """
    dtype = settings.dtype
    is_half = any(p.is_floating_point() and p.dtype.itemsize < 4 for p in target.tensors)
    if dtype is None and is_half and isinstance(target.model, torch.nn.Module):
        dtype = torch.float32
        notes.append(
            "The parameters are in half precision; the report is of the same model in "
            "float32."
        )
    target = converted(target, dtype, settings.device)

    def operator(kind: type[CurvatureLinearOperator], check: bool) -> Any:
        return kind(
            target.model,
            target.loss,
            target.params,
            target.data,
            reduction=target.reduction,
            batch_size_fn=target.batch_size_fn,
            unpack=target.unpack,
            check_deterministic=check,
        )

    A = operator(OPERATORS[settings.curvature], True)
    has_other = not A.psd and A.risk.loss.convex
    return Matrices(A, partial(operator, GGNLinearOperator, False) if has_other else None)


def linearized(op: CurvatureLinearOperator, end: float) -> LinearOperator:
    """The same matrix, for hundreds of products; as it is if they do not come to that."""
    begin = time.monotonic()
    op @ torch.ones(op.shape[1], dtype=op.dtype, device=op.device)
    seconds = time.monotonic() - begin
    expected = min(EXPECTED_PRODUCTS, (end - time.monotonic()) / max(seconds, 1e-9))
    if expected < FEW_PRODUCTS or end - time.monotonic() < SHORT:
        return op
    budget = int(SHARE_OF_MEMORY * free_memory(op.device))
    with warnings.catch_warnings():
        # a matter of speed, which the reader of a report cannot mend
        warnings.filterwarnings("ignore", "The product cannot be recorded")
        try:
            return op.linearize(budget, num_products=int(expected))
        except RuntimeError:  # what cannot be kept is computed
            return op
