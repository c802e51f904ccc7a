"""The automatic choice of operators, and its cost over the whole data."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from curvop.curvature import CurvatureLinearOperator
from curvop.inspection.baseline import Baseline
from curvop.inspection.measuring import seconds_of
from curvop.inspection.observation import Observation
from curvop.inspection.problem import Matrix
from curvop.inspection.sample import Sample, cut
from curvop.inspection.trials import LATE, linearized
from curvop.inspection.wording import explained, shortened
from curvop.linearized import ROWS_BYTES, LinearizedLinearOperator
from curvop.operators import LinearOperator
from curvop.risk import Batch

Build = Callable[..., CurvatureLinearOperator]  # (data, **options)
PRODUCTS = 100
UNKNOWN = "the number of data is unknown: pass num_data="


@dataclass(frozen=True)
class Forecast:
    """The automatic choice, and the cost of 100 products over the data.

    Attributes:
        matrix: The matrix.
        way: What ``differentiation="auto"`` takes; ``None`` if the operator is refused.
        form: What ``linearize()`` keeps; ``None`` if it is refused.
        reason: Why one is refused, or the warning of the operator.
        seconds: Of 100 products over the whole data, each a pass through it.
        linearized_seconds: The same with ``linearize()``, its set-up included.
        linearized_bytes: What would be kept for that.
        proof: The proof of the operator: ``"proven to 3e-10"``, or ``"not
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
class Stretch:
    """Some of the data, to measure on."""

    batches: Sequence[Batch]  # one may come several times
    times: float  # how many times more there is in all
    is_all: bool  # it is as much as there is


def forecast(
    seen: Observation, base: Baseline, allowed: float, deadline: float
) -> Forecast:
    """The automatic choice, measured on as much of the data as there is time for.

    Args:
        seen: The problem and the sample.
        base: What to multiply, and of which matrix.
        allowed: Seconds that a product to measure may take.
        deadline: Nothing is measured after that.
    """
    build = functools.partial(seen.given.operator, base.matrix)
    chosen = _choose(base.matrix, build, seen.sample)
    if chosen.way is None:
        return chosen
    if time.perf_counter() > deadline:
        return replace(chosen, reason=LATE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _estimate(chosen, build, seen.sample, base.v, allowed)
    except Exception as error:
        return replace(chosen, reason=explained(error))


def _choose(matrix: Matrix, build: Build, sample: Sample) -> Forecast:
    """What ``differentiation="auto"`` takes, or why the operator is refused."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            op = build([sample.batch], check_deterministic=True)
    except Exception as error:
        return Forecast(matrix, reason=explained(error))
    way, reason = op.differentiation, None
    if way == "differences" and caught:  # the last word: why it takes no other
        reason = str(caught[-1].message)
    return Forecast(matrix, way=way, reason=reason, proof=str(op.proof))


def _estimate(
    chosen: Forecast, build: Build, sample: Sample, v: Tensor, allowed: float
) -> Forecast:
    op, stretch, plain = _measured(chosen, build, sample, v, allowed)
    load = sample.load_seconds * (sample.num_batches or 1)
    is_known = stretch.times > 0
    found = replace(
        chosen,
        seconds=PRODUCTS * (plain * stretch.times + load) if is_known else None,
        reason=chosen.reason if is_known else UNKNOWN,
    )
    try:
        start = time.perf_counter()
        L = op.linearize()
        setup = time.perf_counter() - start
        if L.form == "rows" and L.nbytes() * stretch.times > ROWS_BYTES:
            L = _other_than_rows(op, v)
        kept = _seconds(L, v)
    except Exception as error:
        return replace(found, reason=f"linearize() fails: {shortened(error)}")
    if not is_known:
        return replace(found, form=L.form)
    # beyond what was measured, a batch is linearised by about a product of each kind
    setup += (stretch.times - 1) * (plain + kept) + load
    return replace(
        found,
        form=L.form,
        linearized_seconds=setup + PRODUCTS * kept * stretch.times,
        linearized_bytes=int(L.nbytes() * stretch.times),
    )


def _measured(
    chosen: Forecast, build: Build, sample: Sample, v: Tensor, allowed: float
) -> tuple[CurvatureLinearOperator, Stretch, float]:
    """The operator on as much of the data as may be multiplied in the time allowed."""
    rows = sample.size or 1
    while True:
        stretch = _stretch(sample, rows)
        op = build(stretch.batches, check_deterministic=False, differentiation=chosen.way)
        seconds = _seconds(op, v)
        if stretch.is_all or 2 * seconds > allowed:
            return op, stretch, seconds
        rows = int(rows * max(2, min(16, allowed / seconds / 2)))


def _stretch(sample: Sample, rows: int) -> Stretch:
    """So many data or a few less: part of the first batch, or copies of it."""
    batches, first, total = sample.num_batches, sample.first_size, sample.num_data
    if first is None or sample.size is None:
        times = float(batches or 0)
        return Stretch([sample.batch], times, True)
    if rows < first:
        part = sample.batch if rows <= sample.size else cut(sample.first, rows)
        return Stretch([part], (total or 0) / max(rows, sample.size), False)
    most = max(1, round((total or first) / first))
    copies = min(rows // first, most)
    times = (total or 0) / (copies * first)
    # two in turn: what depends on how data is merged shows
    two = [sample.first, sample.second or sample.first]
    return Stretch((two * copies)[:copies], times, copies == most)


def _other_than_rows(op: CurvatureLinearOperator, v: Tensor) -> LinearizedLinearOperator:
    """The next form: of the whole data the rows would take too much memory."""
    for form in ("factored", "recorded"):
        try:
            return linearized(op, form, v)
        except Exception:
            continue
    return linearized(op, "graphs", v)


def _seconds(A: LinearOperator, v: Tensor) -> float:
    return seconds_of(lambda: A @ v, A.device)
