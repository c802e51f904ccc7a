"""Losses that depend on parameters by themselves, not only by the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvop.curvature import nested
from curvop.curvature.distributed import failing_together
from curvop.curvature.losses import Loss
from curvop.curvature.parameters import Parameters
from curvop.curvature.probing import differ
from curvop.curvature.proof import shifted

if TYPE_CHECKING:
    from curvop.curvature.base import CurvatureLinearOperator


def settled(op: CurvatureLinearOperator) -> Parameters:
    """The parameters, once the first batch has shown whether the loss depends on them."""
    at = op._parameters
    if not at.read or at.unread is None:
        return at
    size = op.shape[0] + 2  # of the collective that comes next, in the determinism check
    with failing_together(size, op._process_group, op.dtype, op.device):
        for X, y in op._data.batches("does the loss read parameters?"):
            return at if _read(op, X, y) else at.unread
    return at


def refuse_reading(op: CurvatureLinearOperator, X: Any, y: Any) -> None:
    """Refuse a loss of more than the prediction, for matrices that are of that alone.

    Raises:
        ValueError: If the loss depends on parameters at a fixed prediction.
    """
    if op._parameters.read:
        refuse(_read(op, X, y))


def refuse(names: Sequence[str]) -> None:
    """Name the parameters that a loss depends on by itself, if there are any.

    Raises:
        ValueError: If there are.
    """
    if names:
        raise ValueError(
            "Expected a loss that depends on parameters by the prediction alone, as GGN "
            "and Fisher do; this one also depends on the parameters "
            f"{', '.join(names[:3])}{' …' * (len(names) > 3)} by itself (weight decay? "
            "parameters of its own?). Take HessianLinearOperator; or leave c ‖θ‖² out of "
            "the loss and add its matrix, as in G + 2 * c * "
            "IdentityLinearOperator.like(G); or leave the loss's own parameters out of "
            "params."
        )


def refuse_hidden(op: CurvatureLinearOperator, X: Any, y: Any) -> None:
    """Refuse a loss that reaches the module on a way that was not found.

    By a class attribute or a weak reference, say: with other values in the module, the loss
    of a fixed prediction is another one.

    Raises:
        ValueError: If it does.
    """
    at, loss = op._parameters, op._loss
    is_own = not loss.is_trusted or callable(op._source.reduction)
    if not (is_own and at.functional) or at.read:
        return
    with torch.no_grad():
        prediction = op._predict(at.tensors, X)
        before = loss.total(prediction, y)
        with at.place(shifted(at).tensors):
            after = loss.total(prediction, y)
    if differ(before, after):
        raise ValueError(
            f"{loss.name} depends on parameters of the model by itself, but refers to them "
            "in a way that cannot be followed (a class attribute, a weak reference, …): "
            "their part of the derivatives would be missing. Refer to the model in a "
            "closure, or as an attribute of the loss."
        )


def read_by(
    loss: Loss, at: Parameters, params: Sequence[Tensor], prediction: Any, y: Any
) -> list[str]:
    """Names of the parameters that a loss depends on at a fixed prediction.

    Args:
        loss: The loss.
        at: The parameters, for their names.
        params: Them as leaves.
        prediction: The model's.
        y: Targets.
    """
    with torch.enable_grad():
        total = loss.total(nested.map_tensors(Tensor.detach, prediction), y)
    names = at.names or tuple(map(str, range(len(params))))
    return dependent(total, dict(zip(names, params, strict=True)))


def dependent(total: Tensor, params: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that a number depends on."""
    if not total.requires_grad:
        return []
    slopes = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    return [repr(n) for n, slope in zip(params, slopes, strict=True) if slope is not None]


def _read(op: CurvatureLinearOperator, X: Any, y: Any) -> list[str]:
    with op._parameters.leaves() as params:
        with torch.no_grad():
            prediction = op._predict(params, X)
        return read_by(op._loss, op._parameters, params, prediction, y)
