"""Losses that depend on parameters other than through the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from curvop.operators import differ
from curvop.risk import nested
from curvop.risk.distributed import failing_together
from curvop.risk.losses import Loss
from curvop.risk.parameters import Parameters
from curvop.risk.risk import Risk


def settled(risk: Risk) -> Risk:
    """The risk, after a first batch has shown whether the loss depends on parameters."""
    at = risk.parameters
    if not at.read or at.unread is None:
        return risk
    # as in the next collective, which is that of the determinism check
    size = sum(p.numel() for p in at.tensors) + 2
    with failing_together(size, risk.process_group, at.dtype, at.device):
        for X, y in risk.data.batches("does the loss read parameters?"):
            return risk if _read(risk, X, y) else replace(risk, parameters=at.unread)
    return risk


def refuse_reading(risk: Risk, X: Any, y: Any) -> None:
    """Refuse losses of more than the prediction, for GGN and Fisher matrices.

    Raises:
        ValueError: If the loss depends on parameters at a fixed prediction.
    """
    if risk.parameters.read:
        refuse(_read(risk, X, y))


def refuse(names: Sequence[str]) -> None:
    """Refuse a loss that depends on these parameters at a fixed prediction.

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


def refuse_hidden(risk: Risk, X: Any, y: Any) -> None:
    """Refuse a loss that refers to the module in a way that was not found.

    For instance by a class attribute or a weak reference. It is noticed because the loss at
    a fixed prediction changes when the module has other values.

    Raises:
        ValueError: If it does.
    """
    at, loss = risk.parameters, risk.loss
    is_own = not loss.is_trusted or callable(risk.source.reduction)
    if not (is_own and at.functional) or at.read:
        return
    with torch.no_grad():
        prediction = risk.predict(at.tensors, X)
        before = loss.total(prediction, y)
        with at.place(at.shifted().tensors):
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
        params: The parameters as leaves.
        prediction: The model's prediction.
        y: Targets.
    """
    with torch.enable_grad():
        total = loss.total(nested.map_tensors(Tensor.detach, prediction), y)
    names = at.names or tuple(map(str, range(len(params))))
    return dependent(total, dict(zip(names, params, strict=True)))


def dependent(total: Tensor, params: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that a scalar depends on."""
    if not total.requires_grad:
        return []
    slopes = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    return [repr(n) for n, slope in zip(params, slopes, strict=True) if slope is not None]


def _read(risk: Risk, X: Any, y: Any) -> list[str]:
    with risk.parameters.leaves() as params:
        with torch.no_grad():
            prediction = risk.predict(params, X)
        return read_by(risk.loss, risk.parameters, params, prediction, y)
