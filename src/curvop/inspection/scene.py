"""All that the rules of caution look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from curvop.inspection.observation import Observation
from curvop.inspection.problem import Problem
from curvop.inspection.results import Caution, Forecast
from curvop.inspection.sample import Sample
from curvop.risk import Parameters, modules_in


@dataclass(frozen=True)
class Scene:
    """All that the rules look at.

    Attributes:
        problem: Model, loss and parameters.
        sample: The data.
        seen: One look at the model while it computes.
        forecasts: What the automatic choice is.
        is_gradient_right: Whether the gradient is that of the loss, if that is clear.
    """

    problem: Problem
    sample: Sample
    seen: Observation
    forecasts: tuple[Forecast, ...]
    is_gradient_right: bool | None

    @property
    def model(self) -> Any:
        """What the user gave as model."""
        return self.problem.model

    @property
    def parameters(self) -> Parameters:
        """Model and parameters, understood."""
        return self.problem.parameters

    @property
    def modules(self) -> list[tuple[str, nn.Module]]:
        """All layers that the model is known to call, with their names."""
        return [
            (name or type(m).__name__, m)
            for module in modules_in(self.model)
            for name, m in module.named_modules()
        ]

    def names(self, positions: Any) -> tuple[str, ...]:
        """Names of parameters, or else their positions."""
        names = self.parameters.names
        return tuple(f"params[{i}]" if names is None else names[i] for i in positions)


Rule = Callable[[Scene], Iterator[Caution]]
