"""Pieces of the page; every word is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

FEW_ROWS = 10  # of a table that need not be folded


def part(heading: str, *pieces: str) -> str:
    """A section; nothing if there is nothing in it."""
    inside = "\n".join(piece for piece in pieces if piece)
    if not inside:
        return ""
    key = heading.lower().split(" ")[0]
    return f'<section id="{key}">\n<h2>{escape(heading)}</h2>\n{inside}\n</section>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, summary: str = "") -> str:
    """A table, which scrolls where it is too wide; folded under a summary."""
    columns = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = list(rows)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    out = (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{columns}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )
    if not summary:
        return out
    is_open = " open" if len(rows) <= FEW_ROWS else ""
    return f"<details{is_open}><summary>{escape(summary)}</summary>\n{out}</details>"


def figure(svg: str, caption: str) -> str:
    """A figure with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def beside(*pieces: str) -> str:
    """Figures and tables, side by side where there is room."""
    cells = "".join(p if p.startswith("<figure") else f"<div>{p}</div>" for p in pieces)
    return f'<div class="figures">{cells}</div>'


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"
