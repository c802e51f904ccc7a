"""Every way to multiply a matrix, tried on one batch."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.differentiation import Way as AsWay
from curvop.curvature.factored import NotFactorableError, factored
from curvop.curvature.hessian import HessianLinearOperator
from curvop.curvature.keeping import Effort
from curvop.curvature.kept_graph import graphs
from curvop.curvature.linearization import Derivation, LinearizedLinearOperator
from curvop.curvature.probing import tolerance
from curvop.curvature.recorded import recorded
from curvop.curvature.rows import rows
from curvop.curvature.surroundings import surroundings
from curvop.inspection.bench import Bench, blocks
from curvop.inspection.measuring import peak_bytes_of, seconds_of
from curvop.inspection.results import PLAIN, Trial, Verdict, Way, first_line
from curvop.operators.base import LinearOperator

FORMS: dict[Way, Derivation] = {
    "rows": rows,
    "factored": factored,
    "recorded": recorded,
    "graphs": graphs,
}
WAYS: tuple[Way, ...] = (*PLAIN, *FORMS)
EXACT = 1e-6  # relative error in double precision that is none
SMALL = 1e-3  # times what a product is of the order of: below, rounding shows
ROUGH = 100  # times the rounding that is expected, where double precision cannot be asked


def linearized(
    op: CurvatureLinearOperator, form: Way, v: Tensor
) -> LinearizedLinearOperator:
    """The linearised operator of this form, whether or not ``linearize`` would take it.

    Raises:
        NotFactorableError: If the matrix does not have this form, or it would not pay.
        TypeError: If the form needs a function of the parameters.
    """
    if form != "graphs" and not op._parameters.functional:
        raise NotFactorableError(
            "needs a module, or a callable (params, X) -> prediction, not a closure"
        )
    if form == "factored" and isinstance(op, HessianLinearOperator):
        raise NotFactorableError("a Hessian has no rows")
    effort = Effort.asked_for(None, 100, None, False)
    with surroundings(op._data):
        batches = list(op._data.batches("linearize"))
        shares = [_tally(op, X, y) for X, y in batches]
        loss, share = (torch.stack(parts).sum() for parts in zip(*shares, strict=True))
        kept = FORMS[form](op, batches, blocks(op, v.to(op.dtype)), effort)
    return LinearizedLinearOperator(op, kept, op._divisor(loss, share), form, 0.0)  # type: ignore[arg-type]


def _tally(op: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        params = [p.detach() for p in op._parameters.tensors]
        loss, share = op._tally(op._predict(params, X), y)
    return loss, share


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
    error = _error(bench, Av)
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
        error=error,
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
    return "func" if way == "func" else "backpack" if way == "backpack" else "auto"


def _noise(op: CurvatureLinearOperator, A: LinearOperator, v: Tensor) -> float:
    """Relative difference of two products, the generators running on between them."""
    if A is op:
        V = blocks(op, v)
        with surroundings(op._data):
            sums = [op._sum_over_all(V)[0][: len(V)] for _ in range(2)]
        first, second = (torch.cat([b.reshape(-1) for b in s]).double() for s in sums)
    else:
        first, second = ((A @ v).double() for _ in range(2))
    return _ratio(float((first - second).norm()), float(first.norm()))


def _error(bench: Bench, Av: Tensor) -> float | None:
    """Relative to the reference, or to what is rounding where that is zero."""
    if bench.truth is None:
        return None
    truth = bench.truth.to(Av)
    return _ratio(float((Av - truth).norm()), max(float(truth.norm()), SMALL * bench.scale))


def _judged(
    bench: Bench,
    way: Way,
    op: CurvatureLinearOperator,
    Av: Tensor,
    noise: float,
    error: float | None,
) -> tuple[Verdict, str | None]:
    """The verdict, and the reason where it is not "right"."""
    rounding = tolerance(*(p.dtype for p in op._parameters.tensors))
    allowed = max(rounding, bench.accuracy)
    if not bool(Av.isfinite().all()):
        return "not finite", "the product is not finite"
    if bench.is_random or noise > rounding:
        return "random", "loss or gradient differ from one evaluation to the next"
    if error is None:
        return "unchecked", None
    if error <= allowed:
        return "right", None
    exact = None
    if bench.exact is not None:
        try:
            B = bench.exact(_base(way))
            w = bench.v.to(B.dtype)
            exact = _error(bench, (linearized(B, way, w) if way in FORMS else B) @ w)
        except Exception:
            exact = None
    best = max(EXACT, bench.accuracy)
    is_rough = error <= ROUGH * allowed if exact is None else exact <= best
    if is_rough:
        return "rough", f"rounding leaves {_digits(error)}; in float64 it is right"
    return "wrong", f"it is off by {error:.1g} relative to the reference"


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
