"""One measurement of the monitor."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CurvatureRecord:
    """One measurement during training.

    Attributes:
        step: Number of optimizer steps that came before.
        training_seconds: Time spent in training until then.
        seconds: Time that the measurement took.
        loss: Over the monitor's data.
        gradient_norm: ``‖g‖``.
        alignment: ``‖Qᵀ g‖² / ‖g‖²``, the share of the gradient in the span of the
            tracked eigenvectors.
        values: The largest eigenvalues, descending; the first is the sharpness.
        residuals: ``‖H v - λ v‖`` of each, the largest distance to an eigenvalue.
        status: The status of their search, see :class:`curvop.Eigenpairs`; or
            ``"not finite"`` if loss or gradient were not, and all else is ``nan``.
        trace: Of the matrix, estimated; ``None`` without probes.
        trace_error: Its standard error.
        num_matvecs: Number of products that all of this took.
        learning_rate: ``η``, if the optimizer is known.
        threshold: The sharpness beyond which the optimizer is unstable on a quadratic,
            ``2/η`` for gradient descent. Adam's is for ``preconditioned_sharpness``.
        preconditioned_sharpness: Largest eigenvalue of ``P⁻¹ H``, with the optimizer's
            preconditioner ``P``; ``None`` before the first step.
        preconditioned_residual: Its residual as an eigenvalue of ``P^(-1/2) H P^(-1/2)``.
    """

    step: int
    training_seconds: float
    seconds: float
    loss: float
    gradient_norm: float
    alignment: float
    values: tuple[float, ...]  # k
    residuals: tuple[float, ...]  # k
    status: str
    trace: float | None
    trace_error: float | None
    num_matvecs: int
    learning_rate: float | None = None
    threshold: float | None = None
    preconditioned_sharpness: float | None = None
    preconditioned_residual: float | None = None

    @property
    def sharpness(self) -> float:
        """The largest eigenvalue."""
        return self.values[0]

    def row(self) -> dict[str, object]:
        """All fields by name, eigenvalues and residuals one by one."""
        fields: dict[str, object] = {}
        for name, value in vars(self).items():
            if name in _NUMBERED:
                numbers = enumerate(value, 1)
                fields |= {f"{_NUMBERED[name]}_{i}": number for i, number in numbers}
            else:
                fields[name] = value
        return fields

    def scalars(self) -> dict[str, float]:
        """All numbers that are known, by name."""
        return {k: v for k, v in self.row().items() if isinstance(v, int | float)}


_NUMBERED = {"values": "eigenvalue", "residuals": "residual"}


def not_finite(k: int, **when: Any) -> CurvatureRecord:
    """The record of a step at which the loss was not finite."""
    nan = math.nan
    return CurvatureRecord(
        **when,
        loss=nan,
        gradient_norm=nan,
        alignment=nan,
        values=(nan,) * k,
        residuals=(nan,) * k,
        status="not finite",
        trace=nan,
        trace_error=nan,
        num_matvecs=0,
    )


def from_row(row: Mapping[str, str]) -> CurvatureRecord:
    """A record from its row, read as text."""
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(CurvatureRecord):
        if f.name in _NUMBERED:
            names = (f"{_NUMBERED[f.name]}_{i}" for i in itertools.count(1))
            known = itertools.takewhile(row.__contains__, names)
            fields[f.name] = tuple(float(row[name]) for name in known)
        elif f.name in ("step", "num_matvecs"):
            fields[f.name] = int(row[f.name])
        elif f.name == "status":
            fields[f.name] = row[f.name]
        else:
            fields[f.name] = float(row[f.name]) if row[f.name] else None
    return CurvatureRecord(**fields)
