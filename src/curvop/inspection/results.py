"""The results of a preflight: in words, as a table, as a page, as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop.inspection import table
from curvop.inspection.baseline import Reference
from curvop.inspection.cautions import Caution
from curvop.inspection.forecast import Forecast
from curvop.inspection.problem import MATRICES, Matrix
from curvop.inspection.templates import render
from curvop.inspection.trials import PLAIN, Trial, Way
from curvop.inspection.wording import all_of, plural, seconds, size_of

SCHEMA = 1  # raised when the meaning of a key of the plain data changes


@dataclass(frozen=True)
class Preflight:
    """The results of :func:`preflight`; print them for a table.

    Attributes:
        model: Class or name of the model.
        num_parameters: Number of parameters given.
        dtype: Type of the products.
        device: Where they are computed.
        loss: Class or name of the loss.
        reduction: What it does over its terms.
        sample_size: Number of data that the ways were tried on, if it can be told.
        num_data: Number of data in all; ``None`` if unknown.
        num_batches: Number of mini-batches; ``None`` if unknown.
        gradient_seconds: Time of a gradient of the sample.
        gradient_bytes: Most bytes of tensors alive at once that it makes.
        references: What products were compared with, for each matrix.
        trials: Every way for every matrix.
        forecasts: The automatic choice and its cost, one for each matrix.
        cautions: What needs care, the most severe first.
        seconds: Time that all of this took.
    """

    model: str
    num_parameters: int
    dtype: str
    device: str
    loss: str
    reduction: str | None
    sample_size: int | None
    num_data: int | None
    num_batches: int | None
    gradient_seconds: float | None
    gradient_bytes: int | None
    references: tuple[Reference, ...]
    trials: tuple[Trial, ...]
    forecasts: tuple[Forecast, ...]
    cautions: tuple[Caution, ...]
    seconds: float

    @property
    def is_ready(self) -> bool:
        """Whether every matrix that the loss has can be built, and is right.

        A linearised form counts only where it was tried and is not right: ``linearize``
        compares its first product with the operator's own.
        """
        needed = {t.matrix for t in self.trials if t.verdict != "undefined"}
        chosen = {t.matrix for t in self.trials if t.is_chosen and t.way in PLAIN}
        return (
            needed == chosen
            and not any(t.is_chosen and t.is_in_the_way for t in self.trials)
            and not any(c.severity == "stop" for c in self.cautions)
        )

    def trial(self, matrix: Matrix, way: Way) -> Trial:
        """The trial of one matrix and one way.

        Raises:
            KeyError: If there is none.
        """
        for t in self.trials:
            if (t.matrix, t.way) == (matrix, way):
                return t
        raise KeyError((matrix, way))

    def forecast(self, matrix: Matrix) -> Forecast:
        """The automatic choice for one matrix.

        Raises:
            KeyError: If there is none.
        """
        for f in self.forecasts:
            if f.matrix == matrix:
                return f
        raise KeyError(matrix)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: dictionaries, lists, strings, numbers and ``None``.

        The keys are the attributes of this class and of those in its tuples, and
        ``"schema"``, the version of their meaning. What is not finite becomes ``None``.
        """
        return {
            "schema": SCHEMA,
            "is_ready": self.is_ready,
            **plain(dataclasses.asdict(self)),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    # ---------------------------------------------------------------------- in words

    def __str__(self) -> str:
        lines = [
            *table.wrapped(f"Preflight of {self._subject}"),
            *table.wrapped(self._circumstances),
            "",
            *table.wrapped(self._summary),
            "",
        ]
        for matrix in MATRICES:
            lines += table.trial_lines(matrix, self._of(matrix), self._notes(matrix))
        lines += [
            *table.wrapped(table.LEGEND),
            "",
            *table.caution_lines(self.cautions),
            *table.forecast_lines(self.forecasts),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return render(
            "curvop.inspection",
            "preflight.html",
            subject=self._subject,
            circumstances=self._circumstances,
            summary=self._summary,
            headings=["", "way", *table.HEADINGS],
            trials=list(self._trial_rows()),
            legend=table.LEGEND,
            signs=table.SIGNS,
            cautions=self.cautions,
            forecast_headings=["matrix", *table.FORECAST],
            forecasts=list(self._forecast_rows()),
        )

    @property
    def _summary(self) -> str:
        """The verdict on the whole, in a sentence."""
        if self.is_ready:
            matrices = [f.matrix for f in self.forecasts]
            rough = [t.matrix for t in self.trials if t.is_chosen and t.verdict == "rough"]
            text = f"Ready: the automatic choice is right for {all_of(matrices)}."
            if rough:
                text += f" Rounding takes digits of {all_of(list(dict.fromkeys(rough)))}."
            return text
        stops = [c.what for c in self.cautions if c.severity == "stop"]
        if stops:
            return f"Not ready: {stops[0]}."
        for t in self.trials:
            if t.is_chosen and t.is_in_the_way:
                what = t.reason if t.verdict == "unchecked" and t.reason else t.verdict
                return (
                    f"Not ready: the automatic choice for {t.matrix}, {t.way}, is {what}."
                )
        for f in self.forecasts:
            if f.way is None:
                return f"Not ready: {f.matrix}: {f.reason}."
        return "Not ready: nothing works."

    @property
    def _subject(self) -> str:
        """What was looked at."""
        return (
            f"{self.model}: {self.num_parameters:,} parameters, {self.dtype} on "
            f"{self.device}; {self.loss} ({self.reduction})"
        )

    @property
    def _circumstances(self) -> str:
        """On what it was tried, and the unit of times."""
        size = "one batch" if self.sample_size is None else f"{self.sample_size:,}"
        total = "an unknown number of" if self.num_data is None else f"{self.num_data:,}"
        text = f"Tried on {size} of {total} data"
        if self.num_batches is not None:
            text += f" in {plural(self.num_batches, 'batch')}"
        if self.gradient_seconds is not None:
            text += f"; the unit is their gradient: {seconds(self.gradient_seconds)}"
            if self.gradient_bytes is not None:
                text += f", {size_of(self.gradient_bytes)}"
        return text + "."

    def _of(self, matrix: Matrix) -> list[Trial]:
        return [t for t in self.trials if t.matrix == matrix]

    def _notes(self, matrix: Matrix) -> list[str]:
        forecasts = [f for f in self.forecasts if f.matrix == matrix]
        references = [r for r in self.references if r.matrix == matrix]
        return list(table.notes(self._of(matrix), forecasts, references))

    def _trial_rows(self) -> Iterator[tuple[str, ...]]:
        for matrix in MATRICES:
            name: str = matrix  # once
            for t in self._of(matrix):
                way = f"→ {t.way}" if t.is_chosen else t.way
                rest = table.trial_cells(t) if t.works else (t.verdict, t.reason or "")
                yield (name, way, *rest)
                if table.explains(t):
                    yield ("", "", t.reason or "")
                name = ""
            yield from (("", note) for note in self._notes(matrix))

    def _forecast_rows(self) -> Iterator[tuple[str, ...]]:
        for f in self.forecasts:
            if f.way is not None:
                yield (f.matrix, *table.forecast_cells(f))
            if f.reason is not None:
                yield (f.matrix, f.reason)


def plain(value: Any) -> Any:
    """What JSON has: tensors as lists, what is not finite as ``None``, the rest as words.

    >>> plain({"a": torch.ones(2), "b": (1, float("nan")), "c": torch.float32})
    {'a': [1.0, 1.0], 'b': [1, None], 'c': 'float32'}
    """
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return value if isinstance(value, str | int | bool | None) else str(value)
