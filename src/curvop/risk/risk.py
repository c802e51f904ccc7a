"""An empirical risk, and a model's predictions over data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from curvop.risk.context import context
from curvop.risk.data import Data
from curvop.risk.dependence import check_dependence
from curvop.risk.double_precision import Source, doubled
from curvop.risk.losses import Loss, as_loss
from curvop.risk.parameters import Given, Parameters, as_parameters, constant
from curvop.risk.reduction import total_divisor
from curvop.risk.unpacking import takes_weight

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@final
@dataclass(frozen=True)
class Predictions:
    """A model's predictions ``f_θ(x_n)`` over the data.

    Attributes:
        parameters: ``θ``, and the model as a function of them.
        data: The mini-batches.
        source: What the user passed.
    """

    parameters: Parameters
    data: Data
    source: Source

    @staticmethod
    def of(
        model_func: Any, params: Given, data: Iterable[Any], **options: Any
    ) -> Predictions:
        """What the user passed, checked; ``options`` are those of :class:`Data`.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If one does not fit.
        """
        at = as_parameters(model_func, params)
        batches = Data(data, at.device, params=at.tensors, **options)
        return Predictions(at, batches, Source(model_func))

    def predict(self, params: Sequence[Tensor], X: Any) -> Tensor:
        """The prediction for one batch.

        Raises:
            TypeError: If it is not one tensor.
        """
        prediction = self.parameters.model(params, X)
        if not isinstance(prediction, Tensor):
            raise TypeError(
                "Expected a model that predicts one tensor, got "
                f"{type(prediction).__name__}. Wrap it, as in lambda X: model(X).logits."
            )
        return prediction

    def predicted(self, X: Any) -> Tensor:
        """The prediction for one batch, without a graph."""
        with torch.no_grad():
            return self.predict([constant(p) for p in self.parameters.tensors], X)

    def function(self, X: Any) -> Callable[[Sequence[Tensor]], Any]:
        """The prediction for one batch as a function of the parameters."""
        return lambda params: ((self.predict(params, X),), ())

    def context(self) -> AbstractContextManager[None]:
        """The context of every pass over the data."""
        return context(self.data)

    def check_dependence(self) -> None:
        """Refuse a detached model; see :func:`check_dependence`."""
        check_dependence(self.parameters, self.data)

    def in_double(self, X: Any, y: Any) -> tuple[Predictions, Any, Any]:
        """The same with a batch, in double precision; see :func:`doubled`."""
        at, _, X, y = doubled(self.source, self.parameters, X, y)
        return replace(self, parameters=at), X, y


@final
@dataclass(frozen=True)
class Risk:
    r"""An empirical risk.

    .. math:: L(θ) = \frac{1}{Z} \sum_n ℓ(f_θ(x_n), y_n)

    Attributes:
        parameters: ``θ``, and the model as a function of them.
        loss: ``ℓ``, and what its reduction divides by.
        data: The mini-batches.
        source: What the user passed.
        process_group: Ranks that each hold a share of the data.
    """

    parameters: Parameters
    loss: Loss
    data: Data
    source: Source
    process_group: ProcessGroup | None = None

    @staticmethod
    def of(
        model_func: Any,
        loss_func: Any,
        params: Given,
        data: Iterable[Any],
        *,
        reduction: Any = None,
        process_group: ProcessGroup | None = None,
        **options: Any,
    ) -> Risk:
        """What the user passed, checked; ``options`` are those of :class:`Data`.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If one does not fit.
        """
        at = as_parameters(model_func, params, loss_func)
        loss = as_loss(loss_func, reduction)
        batches = Data(
            data,
            at.device,
            may_be_empty=process_group is not None,
            takes_weight=takes_weight(loss_func),
            params=at.tensors,
            **options,
        )
        source = Source(model_func, loss_func, reduction)
        return Risk(at, loss, batches, source, process_group)

    def predict(self, params: Sequence[Tensor], X: Any) -> Any:
        """The prediction for one batch."""
        return self.parameters.model(params, X)

    def tally(
        self, prediction: Any, y: Any, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Summed loss of a batch, and its share of the divisor."""
        if total is None:
            total = self.loss.total(prediction, y)
        share = self.loss.divisor(prediction, y)
        share = torch.as_tensor(share, dtype=torch.float64, device=total.device)
        return total.detach(), share

    def divisor(self, loss: Tensor, share: Tensor) -> Tensor:
        """``Z`` from the sums of what :meth:`tally` returns; the loss must be finite.

        Raises:
            ValueError: If the loss is not finite, or a mean over nothing.
        """
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"Expected a finite loss over the data, got {float(loss)}. Look for NaN "
                "or infinite inputs, targets or parameters."
            )
        return total_divisor(self.loss.reduction, share)

    def divisor_over(self, batches: Iterable[tuple[Any, Any]]) -> Tensor:
        """``Z`` over these batches alone."""
        with torch.no_grad():
            params = [constant(p) for p in self.parameters.tensors]
            tallies = [self.tally(self.predict(params, X), y) for X, y in batches]
        loss, share = (torch.stack(t).sum() for t in zip(*tallies, strict=True))
        return self.divisor(loss, share)

    def context(self) -> AbstractContextManager[None]:
        """The context of every pass over the data."""
        return context(self.data)

    def check_dependence(self) -> None:
        """Refuse a detached model; see :func:`check_dependence`."""
        check_dependence(self.parameters, self.data, self.loss, self.process_group)

    def in_double(self, X: Any, y: Any) -> tuple[Risk, Any, Any]:
        """The same with a batch, in double precision; see :func:`doubled`."""
        at, loss, X, y = doubled(self.source, self.parameters, X, y)
        return replace(self, parameters=at, loss=loss or self.loss), X, y
