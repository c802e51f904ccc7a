"""A preflight as plain text, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from curvop.inspection.results import MATRICES, Preflight, Trial, Way
from curvop.inspection.wording import (
    HEADINGS,
    LEGEND,
    SIGNS,
    cells,
    circumstances,
    explains,
    forecast_cells,
    notes,
    some,
    subject,
    summary,
)

WIDTH = 89
_WAY = 14
_COLUMNS = (10, 8, 11, 8, 9, 9, 10, 10)


def table(p: Preflight) -> str:
    """All of it."""
    lines = [
        *_wrapped("Preflight of " + subject(p)),
        *_wrapped(circumstances(p)),
        "",
        *_wrapped(summary(p)),
        "",
        *_trials(p),
        *_wrapped(LEGEND),
        "",
        *_cautions(p),
        *_forecasts(p),
    ]
    return "\n".join(lines)


def _trials(p: Preflight) -> Iterator[str]:
    for matrix in MATRICES:
        mine = [t for t in p.trials if t.matrix == matrix]
        if not mine:
            continue
        heading = "".join(
            h.ljust(w) if i == 0 else h.rjust(w)
            for i, (h, w) in enumerate(zip(HEADINGS, _COLUMNS, strict=True))
        )
        yield f"{matrix:<{_WAY}}{heading}"
        yield "─" * WIDTH
        if all(t.verdict == "undefined" for t in mine):
            yield from _wrapped(f"  undefined: {mine[0].reason}")
        else:
            told: dict[str | None, Way] = {}  # a reason is told once
            for t in mine:
                first = told.setdefault(t.reason, t.way)
                yield from _trial(t, None if first == t.way else first)
        for note in notes(p, matrix):
            yield from _wrapped(f"  {note}", 2)
        yield ""


def _trial(t: Trial, same: Way | None) -> Iterator[str]:
    """One line, and one for the reason.

    Args:
        t: The trial.
        same: The way that has the same reason, already told.
    """
    mark = "→" if t.is_chosen else " "
    head = f"{mark} {t.way:<{_WAY - 2}}"
    reason = t.reason if same is None else f"as {same}"
    if not t.works:
        yield from _wrapped(f"{head}{t.verdict:<10} {reason}", _WAY + 11)
        return
    first, *rest = cells(t)
    numbers = "".join(c.rjust(w) for c, w in zip(rest, _COLUMNS[1:], strict=True))
    yield f"{head}{first:<{_COLUMNS[0]}}{numbers}".rstrip()
    if explains(t):
        yield from _wrapped(f"{'':<{_WAY}}{reason}", _WAY)


def _cautions(p: Preflight) -> Iterator[str]:
    if not p.cautions:
        yield "Nothing needs care."
    else:
        yield "Needs care"
        yield "─" * WIDTH
    for c in p.cautions:
        where = f" [{some(c.where)}]" if c.where else ""
        yield from _wrapped(f"{SIGNS[c.severity]} {c.what}{where}", 2)
        yield from _wrapped(f"    {c.remedy}", 4)
    yield ""


def _forecasts(p: Preflight) -> Iterator[str]:
    if not p.forecasts:
        return
    yield "100 products over all data"
    yield "─" * WIDTH
    yield (
        f"{'':<12}{'each a pass':<14}{'takes':>10}"
        f"{'':<4}{'linearized':<14}{'takes':>10}{'keeps':>12}"
    )
    told: dict[str, str] = {}  # a reason is told once
    for f in p.forecasts:
        way, plain, form, kept, keeps = forecast_cells(f)
        if f.way is not None:
            yield (
                f"{f.matrix:<12}{way:<14}{plain:>10}{'':<4}{form:<14}{kept:>10}{keeps:>12}"
            )
        if f.reason is not None:
            head = "" if f.way is not None else f.matrix
            first = told.setdefault(f.reason, f.matrix)
            reason = f.reason if first == f.matrix else f"as for the {first}"
            yield from _wrapped(f"{head:<12}{reason}", 12)


def _wrapped(text: str, indent: int = 0) -> list[str]:
    lead = len(text) - len(text.lstrip())
    return textwrap.wrap(
        text.strip(),
        WIDTH,
        initial_indent=" " * lead,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
