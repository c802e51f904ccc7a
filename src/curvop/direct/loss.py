"""The loss, expanded to second order: its gradient and Hessian in the prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvop.autograd import composed
from curvop.direct.double_backward import gradients
from curvop.direct.sequential import in_double
from curvop.risk import (
    buffer_slots,
    dependent,
    kind_of,
    nested,
    refuse,
    substituted,
    tensors_in,
)

# Losses with terms of one example each: the Hessian is block-diagonal, also with weights,
# ignored targets or label smoothing.
_SEPARABLE = {
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.CrossEntropyLoss,
    nn.HuberLoss,
    nn.KLDivLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.MultiLabelSoftMarginLoss,
    nn.NLLLoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
}


@dataclass(frozen=True)
class LossExpansion:
    """The loss, expanded to second order at the prediction.

    Attributes:
        gradient: ``λ``, ``[a]``.
        blocks: Diagonal blocks of the Hessian, ``[groups, c, c]``; all else is zero.
    """

    gradient: Tensor
    blocks: Tensor

    @property
    def hessian(self) -> Tensor:
        """``Φ``, ``[a, a]``."""
        Φ: Tensor = torch.block_diag(*self.blocks)
        return Φ

    @property
    def is_convex(self) -> bool:
        """Whether ``Φ`` is positive semi-definite, to rounding."""
        eigenvalues = torch.linalg.eigvalsh(self.blocks)
        return float(eigenvalues.min()) >= -1e-12 * float(eigenvalues.abs().max())


def expanded_loss(
    loss_func: Callable[[Any, Any], Tensor], prediction: Tensor, y: Any, culprit: str
) -> LossExpansion:
    """Differentiate the loss twice.

    Args:
        loss_func: The loss.
        prediction: In double precision.
        y: The targets; those of floating-point type are converted.
        culprit: What the message names if the loss is not finite.

    Raises:
        RuntimeError: If the loss fails.
        ValueError: If the loss is not a finite scalar.
    """
    slots = buffer_slots([loss_func] if isinstance(loss_func, nn.Module) else [])
    weights = [in_double(table[key]) for table, key in slots]
    with torch.enable_grad(), substituted(slots, weights):
        f = prediction.detach().requires_grad_()
        try:
            loss = composed(loss_func)(f, nested.map_tensors(in_double, y))
        except RuntimeError as error:
            raise RuntimeError(
                f"The loss failed on a prediction of shape {tuple(f.shape)} in double "
                f"precision: {error}"
            ) from error
        _check(loss, culprit)
        (λ,) = gradients(loss, [f], create_graph=True)
        blocks = _diagonal_blocks(λ, f, _num_independent(loss_func, prediction))
    return LossExpansion(λ.detach().flatten(), blocks)


def refuse_parameters(
    loss_func: Callable[[Any, Any], Tensor],
    params: Mapping[str, Tensor],
    prediction: Tensor,
    y: Any,
) -> None:
    """Refuse a loss that depends on parameters other than through the prediction.

    Raises:
        ValueError: If it does.
    """
    read = tensors_in(loss_func)
    mine = {name: p for name, p in params.items() if id(p) in read}
    f = prediction.detach().to(next(iter(params.values())).dtype)
    if mine:
        with torch.enable_grad():
            names = dependent(loss_func(f, y), mine)
        refuse(names)


def _num_independent(loss_func: object, prediction: Tensor) -> int:
    """Number of consecutive groups of outputs that the loss is a sum over."""
    is_separable = kind_of(loss_func) in _SEPARABLE and prediction.ndim > 1
    return len(prediction) if is_separable else 1


def _diagonal_blocks(λ: Tensor, f: Tensor, num_groups: int) -> Tensor:
    """Those of ``∂λ/∂f``, all others being zero: ``[groups, c, c]``.

    One pass differentiates an entry of every group.
    """
    rows = [
        gradients(column.sum(), [f])[0] for column in λ.reshape(num_groups, -1).unbind(1)
    ]
    blocks = torch.stack([row.reshape(num_groups, -1) for row in rows], 1)
    return (blocks + blocks.mT) / 2


def _check(loss: Any, culprit: str) -> None:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"Expected a scalar loss, got {got}. Set reduction='mean' or 'sum'."
        )
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"Expected a finite loss, got {loss.item()}; first not to be finite: "
            f"{culprit}. Check parameters, inputs and targets."
        )
