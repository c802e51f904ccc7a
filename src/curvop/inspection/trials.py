"""Every way to multiply a matrix, tried on one batch."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvop.curvature import EXACT, STOPPED, CurvatureLinearOperator, HessianLinearOperator
from curvop.derivatives import Way as AsWay
from curvop.inspection.baseline import Baseline, blocks
from curvop.inspection.measuring import peak_bytes_of, seconds_of
from curvop.inspection.problem import Matrix
from curvop.inspection.wording import explained, shortened
from curvop.linearized import (
    LinearizedLinearOperator,
    NotFactorableError,
    linearized_as,
)
from curvop.operators import LinearOperator

PlainWay = Literal["func", "backpack", "differences"]
KeptForm = Literal["rows", "factored", "recorded", "graphs"]
Way = PlainWay | KeptForm
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
PLAIN: tuple[Way, ...] = ("func", "backpack", "differences")
# The others are forms of the linearised operator.
FORMS: tuple[KeptForm, ...] = ("rows", "factored", "recorded", "graphs")
WAYS: tuple[Way, ...] = (*PLAIN, *FORMS)
LATE = "out of time: raise max_seconds"
ROUGH = 100  # times the rounding that is expected, where double precision cannot be asked


@dataclass(frozen=True)
class Trial:
    """One way to multiply one matrix, tried on the sample.

    Attributes:
        matrix: The matrix.
        way: ``"func"``, ``"backpack"`` and ``"differences"`` are values of
            ``differentiation=``; the others are forms of the linearised operator.
        verdict: ``"right"``: agrees with the reference to the precision of the
            parameters. ``"rough"``: it agrees in double precision only. ``"wrong"``: it
            does not. ``"random"``: two products differ. ``"not finite"``. ``"unchecked"``:
            it is not proven; see the reason. ``"fails"``: an error. ``"declined"``: a form
            that the matrix does not have, or that would not pay off. ``"undefined"``: the
            loss does not have this matrix. ``"skipped"``: out of time.
        reason: Why, in one line; ``None`` if it is right.
        error: ``‖Av - r‖ / ‖r‖`` for the reference ``r``; of differences, at
            least what they estimate themselves.
        asymmetry: ``|uᵀAv - vᵀAu| / (‖u‖ ‖Av‖ + ‖v‖ ‖Au‖)``.
        noise: Relative difference of two products with the same vector.
        seconds: Of a product.
        gradients: The same, in gradients of the sample.
        peak_bytes: Most bytes of tensors alive at once that a product makes.
        peak_gradients: The same, in gradients of the sample.
        setup_seconds: Time of ``linearize()``.
        kept_bytes: Bytes that the linearised operator keeps beyond parameters and data.
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


def linearized(
    op: CurvatureLinearOperator, form: KeptForm, v: Tensor
) -> LinearizedLinearOperator:
    """The linearised operator of this form, whether or not ``linearize`` would take it.

    Raises:
        NotFactorableError: If the matrix does not have this form, or it would not pay.
        TypeError: If the form needs a function of the parameters.
    """
    if form != "graphs" and not op.risk.parameters.functional:
        raise NotFactorableError(
            "needs a module, or a callable (params, X) -> prediction, not a closure"
        )
    if form == "factored" and isinstance(op, HessianLinearOperator):
        raise NotFactorableError("a Hessian has no rows")
    return linearized_as(form, op, blocks(op, v.to(op.dtype)))


def attempt(base: Baseline, way: Way, deadline: float) -> Trial:
    """Try one way, unless it is too late; an error is a result, too."""
    if time.perf_counter() > deadline:
        return Trial(base.matrix, way, "skipped", LATE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is said in the table
            return _attempt(base, way)
    except NotFactorableError as error:
        return Trial(base.matrix, way, "declined", shortened(error))
    except Exception as error:
        return Trial(base.matrix, way, "fails", explained(error))


def _attempt(base: Baseline, way: Way) -> Trial:
    op = base.build(_plain(way))
    start = time.perf_counter()
    A = linearized(op, way, base.v) if way in FORMS else op
    setup = time.perf_counter() - start
    Av, v, u = (w.double() for w in (A @ base.v, base.v, base.u))
    Au = (A @ base.u).double()
    noise = _noise(op, A, base.v)
    turned = float((u @ Av - v @ Au).abs())
    asymmetry = _ratio(turned, float(u.norm() * Av.norm() + v.norm() * Au.norm()))
    error = _error(base, op, way, Av)
    verdict, reason = _judged(base, way, Av, noise, error)
    seconds = seconds_of(lambda: A @ base.v, op.device)
    try:
        peak = peak_bytes_of(lambda: A @ base.v)
    except Exception:  # a product that another mode of dispatch disturbs
        peak = None
    kept = A.nbytes() if isinstance(A, LinearizedLinearOperator) else None
    return Trial(
        base.matrix,
        way,
        verdict,
        reason,
        error=None if verdict == "unchecked" else error,
        asymmetry=asymmetry,
        noise=noise,
        seconds=seconds,
        gradients=_over(seconds, base.gradient_seconds),
        peak_bytes=peak,
        peak_gradients=_over(peak, base.gradient_bytes),
        setup_seconds=None if kept is None else setup,
        kept_bytes=kept,
    )


def _plain(way: Way) -> AsWay:
    return way if way in PLAIN else "auto"  # type: ignore[return-value]


def _noise(op: CurvatureLinearOperator, A: LinearOperator, v: Tensor) -> float:
    """Relative difference of two products, the generators running on between them."""
    if A is op:
        V = blocks(op, v)
        with op.risk.context():
            sums = [op.sum_over_data(V)[0][: len(V)] for _ in range(2)]
        first, second = (torch.cat([b.reshape(-1) for b in s]).double() for s in sums)
    else:
        first, second = ((A @ v).double() for _ in range(2))
    return _ratio(float((first - second).norm()), float(first.norm()))


def _error(
    base: Baseline, op: CurvatureLinearOperator, way: Way, Av: Tensor
) -> float | None:
    """Relative to the reference; of differences, at least what they estimate."""
    if base.truth is None:
        return None
    own = op.relative_error if way == "differences" else None
    return max(base.truth.distance(blocks(op, Av)), own or 0.0)


def _judged(
    base: Baseline, way: Way, Av: Tensor, noise: float, error: float | None
) -> tuple[Verdict, str | None]:
    """The verdict, and the reason where it is not "right"."""
    rounding = base.rounding
    if not bool(Av.isfinite().all()):
        return "not finite", "the product is not finite"
    if base.is_random or noise > rounding:
        return "random", "loss or gradient differ from one evaluation to the next"
    if base.truth is None or error is None:
        return "unchecked", f"not proven: {base.reference.doubt}"
    by_differences = way == "differences"
    if by_differences and base.is_gradient is False:
        return "unchecked", f"not proven: {STOPPED}"
    margin = EXACT if by_differences else base.truth.margin
    if error <= rounding + margin:
        return "right", None
    exact = None if by_differences else _exact_error(base, way)
    if exact is None:
        is_rough, where = error <= ROUGH * (rounding + margin), ""
    else:
        is_rough, where = exact <= EXACT + margin, "; in float64 it is right"
    if is_rough:
        return "rough", f"rounding leaves {_digits(error)}{where}"
    if base.is_gradient is False:
        return "unchecked", f"not proven: {STOPPED}"
    return "wrong", f"it is off by {error:.1g} relative to the reference"


def _exact_error(base: Baseline, way: Way) -> float | None:
    """The error in double precision, where it can be told."""
    if base.truth is None or base.truth.subject.dtype is not torch.float64:
        return None
    try:
        B = base.exact(_plain(way))
        w = base.v.to(B.dtype)
        Bw = (linearized(B, way, w) if way in FORMS else B) @ w
    except Exception:
        return None
    return base.truth.distance(blocks(B, Bw))


def _digits(error: float) -> str:
    n = math.floor(-math.log10(min(error, 1.0)))
    return f"{n or 'no'} digit{'s' * (n != 1)}"


def _ratio(a: float, b: float) -> float:
    """``a / b``, zero where both are."""
    return a / b if b else (math.inf if a else 0.0)


def _over(a: float | None, unit: float | None) -> float | None:
    return a / unit if a is not None and unit else None
