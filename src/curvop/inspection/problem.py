"""What the user gave, understood as the operators would, and more forgiving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvop.curvature import (
    CurvatureLinearOperator,
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
)
from curvop.inspection.results import Matrix, first_line
from curvop.risk import (
    Batch,
    Loss,
    Parameters,
    as_loss,
    predicted,
    told_reduction,
    unwrapped,
)

CLASSES: dict[Matrix, type[CurvatureLinearOperator]] = {
    "Hessian": HessianLinearOperator,
    "GGN": GGNLinearOperator,
    "EF": EFLinearOperator,
}


@dataclass(frozen=True)
class Problem:
    """Model, loss and parameters.

    Attributes:
        model: As given.
        loss_func: As given.
        params: As given.
        parameters: Model and parameters, understood.
        loss: The loss, understood.
        reduction: What the operators are told.
        guessed: The reduction, where neither loss nor user told it; ``"unknown"`` if it
            is neither mean nor sum.
        complaint: What the loss does not keep of its word.
        batch_size_fn: As given.
    """

    model: Any
    loss_func: Any
    params: Any
    parameters: Parameters
    loss: Loss
    reduction: Any
    guessed: str | None
    complaint: str | None
    batch_size_fn: Callable[[Any], int] | None

    def operator(
        self, matrix: Matrix, data: Sequence[Batch], **options: Any
    ) -> CurvatureLinearOperator:
        """The operator of this name."""
        return CLASSES[matrix](
            self.model,
            self.loss_func,
            self.params,
            data,
            reduction=self.reduction,
            batch_size_fn=self.batch_size_fn,
            **options,
        )

    def call(self, params: Sequence[Tensor], X: Any) -> Any:
        """The prediction, of a model that holds these parameters already."""
        model = unwrapped(self.model) if isinstance(self.model, nn.Module) else self.model
        if isinstance(self.params, Mapping) and not isinstance(model, nn.Module):
            return predicted(model(dict(zip(self.params, params, strict=True)), X))
        return predicted(model(X))


def understood(
    model: Any,
    loss_func: Any,
    params: Any,
    parameters: Parameters,
    reduction: Any,
    batch_size_fn: Callable[[Any], int] | None,
    batch: Batch,
) -> Problem:
    """The problem; of a loss that does not tell its reduction, what it does on a batch.

    Raises:
        TypeError: If the loss is no callable.
        ValueError: If the reduction is unknown or contradicted.
    """
    X, y = batch

    def keeps_its_word(loss: Loss) -> str | None:
        try:
            with torch.no_grad():
                p = [p.detach() for p in parameters.tensors]
                loss.verify(parameters.model(p, X), y)
        except ValueError as error:
            return first_line(error)
        except Exception:
            return None  # that it cannot be computed is found later
        return None

    guessed = None
    told = reduction is not None or not callable(loss_func)
    if not told and told_reduction(loss_func) is None:
        kept = [r for r in ("mean", "sum") if not keeps_its_word(as_loss(loss_func, r))]
        guessed = kept[0] if kept else "unknown"
        reduction = kept[0] if kept else "mean"
    loss = as_loss(loss_func, reduction)
    complaint = keeps_its_word(loss) if guessed is None else None
    return Problem(
        model,
        loss_func,
        params,
        parameters,
        loss,
        reduction,
        guessed,
        complaint,
        batch_size_fn,
    )


def name_of(x: Any) -> str:
    """The name of a function, or of the class of an object."""
    x = unwrapped(x) if isinstance(x, nn.Module) else x
    x = getattr(x, "func", x)  # a partial has none
    return str(getattr(x, "__name__", type(x).__name__))
