"""What the user passed; the reduction of a loss that does not state it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curvop.curvature import (
    CurvatureLinearOperator,
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
)
from curvop.derivatives import Way
from curvop.inspection.wording import shortened
from curvop.risk import (
    Batch,
    Loss,
    Parameters,
    as_loss,
    predicted,
    told_reduction,
    unwrapped,
)

Matrix = Literal["Hessian", "GGN", "EF"]
OPERATORS: dict[Matrix, type[CurvatureLinearOperator]] = {
    "Hessian": HessianLinearOperator,
    "GGN": GGNLinearOperator,
    "EF": EFLinearOperator,
}
MATRICES: tuple[Matrix, ...] = tuple(OPERATORS)


@dataclass(frozen=True)
class Problem:
    """What the user passed.

    Attributes:
        model: As for the operators: a module, or a callable over the parameters.
        loss: A torch loss module, or a callable ``(prediction, y) -> scalar``.
        params: List or dict of tensors.
        data: A re-iterable of batches ``(X, y)``.
        optimizer: One that has taken steps, or ``None``.
        preconditioner: Diagonal or operator that gradients are divided by, or ``None``.
        reduction: That of a callable loss that does not state it.
        batch_size_fn: Number of data in ``X``, if it cannot be found out.
        unpack: What makes ``(X, y)`` of a batch in another form.
    """

    model: Any
    loss: Any
    params: list[Tensor] | dict[str, Tensor]
    data: Iterable[Any]
    optimizer: Any = None
    preconditioner: Any = None
    reduction: Any = None
    batch_size_fn: Callable[[Any], int] | None = None
    unpack: Callable[[Any], Any] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters, in order."""
        params = self.params
        return list(params.values()) if isinstance(params, dict) else params

    def operator(self, matrix: Matrix, **options: Any) -> CurvatureLinearOperator:
        """The operator of this name."""
        return OPERATORS[matrix](
            self.model,
            self.loss,
            self.params,
            self.data,
            reduction=self.reduction,
            batch_size_fn=self.batch_size_fn,
            unpack=self.unpack,
            **options,
        )


@dataclass(frozen=True)
class Understood:
    """What the user gave, understood as the operators would, and more forgiving."""

    problem: Problem  # what was given, with the reduction that operators are told
    parameters: Parameters  # model and parameters
    loss: Loss  # the loss
    # the reduction, where neither loss nor user told it; "unknown" if it is neither
    # mean nor sum
    guessed: str | None
    complaint: str | None  # what the loss does not keep of its word

    def operator(
        self, matrix: Matrix, data: Sequence[Batch], **options: Any
    ) -> CurvatureLinearOperator:
        """The operator of this name, on unpacked batches."""
        return replace(self.problem, data=data, unpack=None).operator(matrix, **options)

    def on_batch(self, matrix: Matrix, batch: Batch, way: Way) -> CurvatureLinearOperator:
        """The operator of one batch, differentiated this way."""
        return self.operator(
            matrix, [batch], check_deterministic=False, differentiation=way
        )

    def call(self, params: Sequence[Tensor], X: Any) -> Any:
        """The prediction, of a model that holds these parameters already."""
        model, names = self.problem.model, self.problem.params
        model = unwrapped(model) if isinstance(model, nn.Module) else model
        if isinstance(names, Mapping) and not isinstance(model, nn.Module):
            return predicted(model(dict(zip(names, params, strict=True)), X))
        return predicted(model(X))


def understood(problem: Problem, parameters: Parameters, batch: Batch) -> Understood:
    """The problem; of a loss that does not tell its reduction, what it does on a batch.

    Raises:
        TypeError: If the loss is no callable.
        ValueError: If the reduction is unknown or contradicted.
    """
    X, y = batch

    def broken_word(loss: Loss) -> str | None:
        try:
            with torch.no_grad():
                p = [p.detach() for p in parameters.tensors]
                loss.verify(parameters.model(p, X), y)
        except ValueError as error:
            return shortened(error)
        except Exception:
            return None  # that it cannot be computed is found later
        return None

    guessed, told = None, problem.reduction
    if told is None and callable(problem.loss) and told_reduction(problem.loss) is None:
        kept = [r for r in ("mean", "sum") if not broken_word(as_loss(problem.loss, r))]
        guessed = kept[0] if kept else "unknown"
        told = kept[0] if kept else "mean"
    loss = as_loss(problem.loss, told)
    complaint = broken_word(loss) if guessed is None else None
    return Understood(
        replace(problem, reduction=told), parameters, loss, guessed, complaint
    )


def name_of(x: Any) -> str:
    """The name of a function, or of the class of an object."""
    x = unwrapped(x) if isinstance(x, nn.Module) else x
    x = getattr(x, "func", x)  # a partial has none
    return str(getattr(x, "__name__", type(x).__name__))
