"""The tables of a preflight: their cells, and plain text at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from curvop.inspection.baseline import Reference
from curvop.inspection.cautions import Caution, Severity
from curvop.inspection.forecast import Forecast
from curvop.inspection.problem import Matrix
from curvop.inspection.trials import Trial, Way
from curvop.inspection.wording import scientific, seconds, size_of, some, times

HEADINGS = ("verdict", "error", "asymmetry", "noise", "time", "memory", "set-up", "kept")
FORECAST = ("each a pass", "takes", "linearized", "takes", "keeps")
LEGEND = (
    "→ the automatic choice. error: against differences of first derivatives in float64; "
    "of these, at least their own estimate. asymmetry: of uᵀAv and vᵀAu. noise: of two "
    "products. time, memory: of a product, in gradients. set-up, kept: once, to linearize."
)
SIGNS: dict[Severity, str] = {"stop": "✗", "care": "!", "note": "·"}
WIDTH = 89
WAY = 14
COLUMNS = (10, 8, 11, 8, 9, 9, 10, 10)


# ----------------------------------------------------------------------------- cells


def trial_cells(t: Trial) -> tuple[str, ...]:
    """A trial under the headings."""
    return (
        t.verdict,
        scientific(t.error),
        scientific(t.asymmetry),
        scientific(t.noise),
        times(t.gradients),
        times(t.peak_gradients),
        "" if t.setup_seconds is None else seconds(t.setup_seconds),
        "" if t.kept_bytes is None else size_of(t.kept_bytes),
    )


def forecast_cells(f: Forecast) -> tuple[str, ...]:
    """The automatic choice, and what it costs."""
    plain = "?" if f.seconds is None else seconds(f.seconds)
    kept = "?" if f.linearized_seconds is None else seconds(f.linearized_seconds)
    keeps = "?" if f.linearized_bytes is None else size_of(f.linearized_bytes)
    return f.way or "refused", plain, f.form or "?", kept, keeps


def explains(t: Trial) -> bool:
    """Whether a trial that returned a product has a reason to be told."""
    return t.works and t.verdict in ("rough", "not finite", "unchecked")


def notes(
    trials: Sequence[Trial], forecasts: Sequence[Forecast], references: Sequence[Reference]
) -> Iterator[str]:
    """What an operator says of its products, and what they were compared with.

    Args:
        trials: Those of one matrix, as are the others.
        forecasts: The automatic choice.
        references: What it was compared with.
    """
    for f in forecasts:
        if f.way is not None and f.proof is not None:
            yield f"The operator takes {f.way}, {f.proof}"
    for r in references:
        if r.method is None and not any(t.verdict == "unchecked" for t in trials):
            yield f"Compared with nothing: {r.doubt}"
        elif r.method is not None and r.dtype != "float64":
            yield f"Compared with {r.method} in {r.dtype}"


# ------------------------------------------------------------------------------ text


def trial_lines(matrix: Matrix, trials: Sequence[Trial], notes: list[str]) -> Iterator[str]:
    """The trials of one matrix, if there are any."""
    if not trials:
        return
    first, *rest = zip(HEADINGS, COLUMNS, strict=True)
    heading = first[0].ljust(first[1]) + "".join(h.rjust(w) for h, w in rest)
    yield f"{matrix:<{WAY}}{heading}"
    yield "─" * WIDTH
    if all(t.verdict == "undefined" for t in trials):
        yield from wrapped(f"  undefined: {trials[0].reason}")
    else:
        told: dict[str | None, Way] = {}  # a reason is told once
        for t in trials:
            way = told.setdefault(t.reason, t.way)
            yield from _trial(t, t.reason if way == t.way else f"as {way}")
    for note in notes:
        yield from wrapped(f"  {note}", 2)
    yield ""


def _trial(t: Trial, reason: str | None) -> Iterator[str]:
    """One line, and one for the reason."""
    mark = "→" if t.is_chosen else " "
    head = f"{mark} {t.way:<{WAY - 2}}"
    if not t.works:
        yield from wrapped(f"{head}{t.verdict:<10} {reason}", WAY + 11)
        return
    first, *rest = trial_cells(t)
    numbers = "".join(c.rjust(w) for c, w in zip(rest, COLUMNS[1:], strict=True))
    yield f"{head}{first:<{COLUMNS[0]}}{numbers}".rstrip()
    if explains(t):
        yield from wrapped(f"{'':<{WAY}}{reason}", WAY)


def caution_lines(cautions: Sequence[Caution]) -> Iterator[str]:
    """What needs care, and what to do."""
    if not cautions:
        yield "Nothing needs care."
    else:
        yield "Needs care"
        yield "─" * WIDTH
    for c in cautions:
        where = f" [{some(c.where)}]" if c.where else ""
        yield from wrapped(f"{SIGNS[c.severity]} {c.what}{where}", 2)
        yield from wrapped(f"    {c.remedy}", 4)
    yield ""


def forecast_lines(forecasts: Sequence[Forecast]) -> Iterator[str]:
    """What many products would take."""
    if not forecasts:
        return
    line = "{:<12}{:<14}{:>10}    {:<14}{:>10}{:>12}"
    yield "100 products over all data"
    yield "─" * WIDTH
    yield line.format("", *FORECAST)
    told: dict[str, str] = {}  # a reason is told once
    for f in forecasts:
        if f.way is not None:
            yield line.format(f.matrix, *forecast_cells(f))
        if f.reason is not None:
            head = "" if f.way is not None else f.matrix
            first = told.setdefault(f.reason, f.matrix)
            reason = f.reason if first == f.matrix else f"as for the {first}"
            yield from wrapped(f"{head:<12}{reason}", 12)


def wrapped(text: str, indent: int = 0) -> list[str]:
    """Lines that fit, all but the first indented."""
    lead = len(text) - len(text.lstrip())
    return textwrap.wrap(
        text.strip(),
        WIDTH,
        initial_indent=" " * lead,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
