"""Every way to multiply a matrix, tried on one batch."""

from __future__ import annotations

import math
import time
import warnings

import torch
from torch import Tensor

from curvop.curvature import EXACT, STOPPED, CurvatureLinearOperator, HessianLinearOperator
from curvop.derivatives import Way as AsWay
from curvop.inspection.bench import Bench, blocks
from curvop.inspection.measuring import peak_bytes_of, seconds_of
from curvop.inspection.results import PLAIN, Trial, Verdict, Way, first_line
from curvop.linearized import (
    Form,
    LinearizedLinearOperator,
    NotFactorableError,
    linearized_as,
)
from curvop.operators import LinearOperator, tolerance

FORMS: tuple[Form, ...] = ("rows", "factored", "recorded", "graphs")
WAYS: tuple[Way, ...] = (*PLAIN, *FORMS)
ROUGH = 100  # times the rounding that is expected, where double precision cannot be asked


def linearized(
    op: CurvatureLinearOperator, form: Form, v: Tensor
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


def attempt(bench: Bench, way: Way) -> Trial:
    """Try one way; whatever goes wrong is the result."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is said in the table
            return _attempt(bench, way)
    except NotFactorableError as error:
        return Trial(bench.matrix, way, "declined", first_line(error))
    except Exception as error:
        return Trial(bench.matrix, way, "fails", _explained(error))


def _attempt(bench: Bench, way: Way) -> Trial:
    op = bench.build(_base(way))
    start = time.perf_counter()
    A = linearized(op, way, bench.v) if way in FORMS else op
    setup = time.perf_counter() - start
    Av, v, u = (w.double() for w in (A @ bench.v, bench.v, bench.u))
    Au = (A @ bench.u).double()
    noise = _noise(op, A, bench.v)
    turned = float((u @ Av - v @ Au).abs())
    asymmetry = _ratio(turned, float(u.norm() * Av.norm() + v.norm() * Au.norm()))
    error = _error(bench, op, way, Av)
    verdict, reason = _judged(bench, way, op, Av, noise, error)
    seconds = seconds_of(lambda: A @ bench.v, op.device)
    try:
        peak = peak_bytes_of(lambda: A @ bench.v)
    except Exception:  # a product that another mode of dispatch disturbs
        peak = None
    is_linearized = isinstance(A, LinearizedLinearOperator)
    return Trial(
        bench.matrix,
        way,
        verdict,
        reason,
        error=None if verdict == "unchecked" else error,
        asymmetry=asymmetry,
        noise=noise,
        seconds=seconds,
        gradients=_over(seconds, bench.gradient_seconds),
        peak_bytes=peak,
        peak_gradients=_over(peak, bench.gradient_bytes),
        setup_seconds=setup if is_linearized else None,
        kept_bytes=A.nbytes() if isinstance(A, LinearizedLinearOperator) else None,
    )


def _base(way: Way) -> AsWay:
    return way if way in PLAIN else "auto"  # type: ignore[return-value]


def _noise(op: CurvatureLinearOperator, A: LinearOperator, v: Tensor) -> float:
    """Relative difference of two products, the generators running on between them."""
    if A is op:
        V = blocks(op, v)
        with op.risk.surroundings():
            sums = [op.sum_over_data(V)[0][: len(V)] for _ in range(2)]
        first, second = (torch.cat([b.reshape(-1) for b in s]).double() for s in sums)
    else:
        first, second = ((A @ v).double() for _ in range(2))
    return _ratio(float((first - second).norm()), float(first.norm()))


def _error(bench: Bench, op: CurvatureLinearOperator, way: Way, Av: Tensor) -> float | None:
    """Relative to the reference; of differences, at least what they estimate."""
    if bench.truth is None:
        return None
    own = op.relative_error if way == "differences" else None
    return max(bench.truth.distance(blocks(op, Av)), own or 0.0)


def _judged(
    bench: Bench,
    way: Way,
    op: CurvatureLinearOperator,
    Av: Tensor,
    noise: float,
    error: float | None,
) -> tuple[Verdict, str | None]:
    """The verdict, and the reason where it is not "right"."""
    rounding = tolerance(*(p.dtype for p in op.risk.parameters.tensors))
    if not bool(Av.isfinite().all()):
        return "not finite", "the product is not finite"
    if bench.is_random or noise > rounding:
        return "random", "loss or gradient differ from one evaluation to the next"
    if bench.truth is None or error is None:
        return "unchecked", f"not proven: {bench.reference.doubt}"
    by_differences = way == "differences"
    if by_differences and bench.is_gradient is False:
        return "unchecked", f"not proven: {STOPPED}"
    margin = EXACT if by_differences else bench.truth.margin
    if error <= rounding + margin:
        return "right", None
    exact = None if by_differences else _exact_error(bench, way)
    if exact is None:
        is_rough, where = error <= ROUGH * (rounding + margin), ""
    else:
        is_rough, where = exact <= EXACT + margin, "; in float64 it is right"
    if is_rough:
        return "rough", f"rounding leaves {_digits(error)}{where}"
    if bench.is_gradient is False:
        return "unchecked", f"not proven: {STOPPED}"
    return "wrong", f"it is off by {error:.1g} relative to the reference"


def _exact_error(bench: Bench, way: Way) -> float | None:
    """The error in double precision, where it can be told."""
    if bench.truth is None or bench.truth.subject.dtype is not torch.float64:
        return None
    try:
        B = bench.exact(_base(way))
        w = bench.v.to(B.dtype)
        Bw = (linearized(B, way, w) if way in FORMS else B) @ w
    except Exception:
        return None
    return bench.truth.distance(blocks(B, Bw))


def _digits(error: float) -> str:
    n = math.floor(-math.log10(min(error, 1.0)))
    return f"{n or 'no'} digit{'s' * (n != 1)}"


def _explained(error: Exception) -> str:
    kind = type(error).__name__
    line = first_line(error)
    return line if line == kind else f"{kind}: {line}"


def _ratio(a: float, b: float) -> float:
    """``a / b``, zero where both are."""
    return a / b if b else (math.inf if a else 0.0)


def _over(a: float | None, unit: float | None) -> float | None:
    return a / unit if a is not None and unit else None
