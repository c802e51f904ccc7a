"""A preflight as HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from curvop.inspection.results import MATRICES, Preflight
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

_FORECAST = ("matrix", "each a pass", "takes", "linearized", "takes", "keeps")


def page(p: Preflight) -> str:
    """All of it, in the style of the page around."""
    return "".join(
        [
            f"<p><b>Preflight of {escape(subject(p))}</b><br>",
            f"{escape(circumstances(p))}</p>",
            f"<p><b>{escape(summary(p))}</b></p>",
            *_table(["", "way", *HEADINGS], _trials(p), left={0, 1, 2}),
            f"<p><small>{escape(LEGEND)}</small></p>",
            *_cautions(p),
            "<p>100 products over all data:</p>",
            *_table(_FORECAST, _forecasts(p), left={0, 1, 3}),
        ]
    )


def _trials(p: Preflight) -> Iterator[Iterable[str]]:
    for matrix in MATRICES:
        name: str = matrix  # once
        for t in p.trials:
            if t.matrix != matrix:
                continue
            way = f"→ {t.way}" if t.is_chosen else t.way
            rest = cells(t) if t.works else (t.verdict, t.reason or "")
            yield (name, way, *rest)
            if explains(t):
                yield ("", "", t.reason or "")
            name = ""
        yield from (("", note) for note in notes(p, matrix))


def _forecasts(p: Preflight) -> Iterator[Iterable[str]]:
    for f in p.forecasts:
        if f.way is not None:
            yield (f.matrix, *forecast_cells(f))
        if f.reason is not None:
            yield (f.matrix, f.reason)


def _cautions(p: Preflight) -> Iterator[str]:
    if p.cautions:
        yield "<p>Needs care:</p><ul>"
    for c in p.cautions:
        where = f" <code>{escape(some(c.where))}</code>" if c.where else ""
        what = f"{SIGNS[c.severity]} {escape(c.what)}{where}"
        yield f"<li>{what}<br><small>{escape(c.remedy)}</small></li>"
    if p.cautions:
        yield "</ul>"


def _table(
    headings: Iterable[str], rows: Iterable[Iterable[str]], left: set[int]
) -> Iterator[str]:
    """A table; a row that is too short ends in a cell that spans the rest.

    Args:
        headings: One for each column.
        rows: Their cells.
        left: Columns of words; the others hold numbers.
    """
    headings = list(headings)
    yield "<table><thead><tr>"
    yield from (_cell("th", h, i in left) for i, h in enumerate(headings))
    yield "</tr></thead><tbody>"
    for row in rows:
        *before, last = row
        span = len(headings) - len(before)
        yield "<tr>"
        yield from (_cell("td", c, i in left) for i, c in enumerate(before))
        yield _cell("td", last, span > 1 or len(before) in left, span)
        yield "</tr>"
    yield "</tbody></table>"


def _cell(tag: str, text: str, is_left: bool, span: int = 1) -> str:
    side = "left" if is_left else "right"
    columns = f' colspan="{span}"' if span > 1 else ""
    return f'<{tag}{columns} style="text-align: {side}">{escape(text)}</{tag}>'
