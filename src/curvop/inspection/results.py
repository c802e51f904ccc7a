"""What a preflight found: frozen values, as a table, as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from curvop.derivatives import first_line as whole_first_line

Matrix = Literal["Hessian", "GGN", "EF"]
Method = Literal["finite differences"]
Way = Literal["func", "backpack", "differences", "rows", "factored", "recorded", "graphs"]
Severity = Literal["stop", "care", "note"]
Verdict = Literal[
    "right",
    "rough",
    "wrong",
    "random",
    "not finite",
    "unchecked",
    "fails",
    "declined",
    "undefined",
    "skipped",
]
MATRICES: tuple[Matrix, ...] = ("Hessian", "GGN", "EF")
# The others are linearised forms.
PLAIN: tuple[Way, ...] = ("func", "backpack", "differences")
SCHEMA = 1  # raised when the meaning of a key of the plain data changes


@dataclass(frozen=True)
class Reference:
    """What a matrix was compared with.

    Attributes:
        matrix: The matrix.
        method: Finite differences of first derivatives; ``None`` if there is no
            reference.
        dtype: The precision that it was computed in, ``"float64"`` where possible.
        doubt: Why there is none.
        error: Its relative error, as estimated by itself.
    """

    matrix: Matrix
    method: Method | None
    dtype: str | None
    doubt: str | None = None
    error: float | None = None


@dataclass(frozen=True)
class Trial:
    """One way to multiply one matrix, tried on the sample.

    Attributes:
        matrix: The matrix.
        way: ``"func"``, ``"backpack"`` and ``"differences"`` are values of
            ``differentiation=``; the others are forms of the linearised operator.
        verdict: ``"right"``: agrees with the reference to the precision of the
            parameters. ``"rough"``: rounding takes more than that, in double precision it
            agrees. ``"wrong"``: it does not. ``"random"``: two products differ. ``"not
            finite"``. ``"unchecked"``: it is not proven; the reason tells why.
            ``"fails"``: an error.
            ``"declined"``: a form that the matrix does not have, or that would not pay.
            ``"undefined"``: the loss does not have this matrix. ``"skipped"``: out of time.
        reason: Why, in one line; ``None`` where it is right.
        error: ``‖Av - r‖ / ‖r‖`` for the reference ``r``; of differences, at
            least what they estimate themselves.
        asymmetry: ``|uᵀAv - vᵀAu| / (‖u‖ ‖Av‖ + ‖v‖ ‖Au‖)``.
        noise: Relative difference of two products with the same vector.
        seconds: Of a product.
        gradients: The same, in gradients of the sample.
        peak_bytes: Most bytes of tensors alive at once that a product makes.
        peak_gradients: The same, in gradients of the sample.
        setup_seconds: What it took to linearise.
        kept_bytes: What the linearised operator keeps beyond parameters and data.
        is_chosen: Whether the automatic choice takes this way on the sample.
    """

    matrix: Matrix
    way: Way
    verdict: Verdict
    reason: str | None = None
    error: float | None = None
    asymmetry: float | None = None
    noise: float | None = None
    seconds: float | None = None
    gradients: float | None = None
    peak_bytes: int | None = None
    peak_gradients: float | None = None
    setup_seconds: float | None = None
    kept_bytes: int | None = None
    is_chosen: bool = False

    @property
    def works(self) -> bool:
        """Whether it returned a product."""
        return self.error is not None or self.noise is not None

    @property
    def is_in_the_way(self) -> bool:
        """Whether it must not be what the automatic choice takes."""
        allowed = ("right", "rough") if self.way in PLAIN else ("right", "rough", "skipped")
        return self.verdict not in allowed


@dataclass(frozen=True)
class Forecast:
    """What the automatic choice is, and what 100 products over the data would take.

    Attributes:
        matrix: The matrix.
        way: What ``differentiation="auto"`` takes; ``None`` if the operator is refused.
        form: What ``linearize()`` keeps; ``None`` if it is refused.
        reason: Why one is refused, or what the operator warns of.
        seconds: Of 100 products over the whole data, each a pass through it.
        linearized_seconds: The same with ``linearize()``, its set-up included.
        linearized_bytes: What would be kept for that.
        proof: What the operator says of its products: ``"proven to 3e-10"``, or ``"not
            proven: why"``.
    """

    matrix: Matrix
    way: str | None = None
    form: str | None = None
    reason: str | None = None
    seconds: float | None = None
    linearized_seconds: float | None = None
    linearized_bytes: int | None = None
    proof: str | None = None


@dataclass(frozen=True)
class Caution:
    """Something in model, loss or data that needs care.

    Attributes:
        severity: ``"stop"``: operators are refused, or wrong. ``"care"``: the matrix is
            another one than you may think, or less accurate. ``"note"``: taken care of,
            for your information.
        what: What it is.
        where: Names of the modules or tensors.
        remedy: What to do, in one line.
    """

    severity: Severity
    what: str
    where: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Preflight:
    """What :func:`preflight` found; print it for a table.

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
        gradient_seconds: What a gradient of the sample takes.
        gradient_bytes: Most bytes of tensors alive at once that it makes.
        references: What was compared with, one for each matrix.
        trials: Every way for every matrix.
        forecasts: The automatic choice and its cost, one for each matrix.
        cautions: What needs care, the gravest first.
        seconds: What all of this took.
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
        """What was found for one matrix and one way.

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
            **_plain(dataclasses.asdict(self)),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def __str__(self) -> str:
        from curvop.inspection.table import table

        return table(self)

    def _repr_html_(self) -> str:
        from curvop.inspection.html import page

        return page(self)


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return x


def first_line(error: BaseException, length: int = 160) -> str:
    """An error in one line of so many characters."""
    line = whole_first_line(error).rstrip()
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
