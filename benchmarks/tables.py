"""Markdown tables of a record, for README and documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import targets
from networks import ON_CPU, ON_GPU
from peers import BASELINE, CONTENDERS, LINEARISED, MAIN, MATRICES, PLAIN
from timing import BYTES, CPU, GPU, WALL

Row = dict[str, Any]
ORDER = [*ON_CPU, *ON_GPU]


def write(record: dict[str, list[Row]], folder: Path) -> None:
    """All tables: ``speed.md``, ``targets.md``, and ``summary.md`` for the README."""
    rows = sorted(record["rows"], key=_place)
    sections = [_machines(record["runs"], rows), _notes(rows)]
    for device in ("cpu", "cuda"):
        if mine := [r for r in rows if r["device"] == device]:
            sections += _sections(mine, GPU.name if device == "cuda" else CPU.name)
    (folder / "speed.md").write_text("\n\n".join(s for s in sections if s) + "\n")
    (folder / "targets.md").write_text(targets.table(rows) + "\n")
    (folder / "summary.md").write_text(_summary(rows) + "\n")


def line(row: Row) -> str:
    """A row for the console."""
    show = cell if row["clock"] != BYTES else lambda row, n: _size(row["contenders"][n])
    cells = [f"{name} {show(row, name)}" for name in row["contenders"]]
    head = f"{_title(row)}, {row['matrix']}: {row['what']} × {row['columns']}"
    return f"{head}, {row['clock']}: " + "; ".join(cells)


def cell(row: Row | None, name: str) -> str:
    """Gradients per column, and in brackets the ratio to the baseline."""
    figures = row["contenders"].get(name) if row else None
    if figures is None:
        return "–"
    if "failure" in figures:
        return "refuses"
    if figures.get("error", 0) > row["tolerance"]:
        wrong = f"wrong by {figures['error']:.0e}"
        if name != BASELINE:
            return wrong
        return f"{number(figures['gradients'])} ({wrong})"
    text = number(figures["gradients"]) if "gradients" in figures else "–"
    return f"{text} ({number(figures['ratio'])})" if "ratio" in figures else text


def number(x: float) -> str:
    """Two decimals; below 0.1 two digits, from 10 on none."""
    if x < 0.1:
        return f"{x:.2g}"
    return f"{x:.2f}" if x < 10 else f"{x:.0f}"


def _sections(rows: list[Row], clock: str) -> list[str]:
    """The tables of one device."""
    products = [r for r in rows if r["what"] == "product"]
    timed = [r for r in products if r["clock"] == clock]
    names = [c.name for c in CONTENDERS]
    one = [r for r in timed if r["columns"] == 1]
    sections = [_table(f"One vector, {clock}", names, one, _each(names))]
    for k in sorted({r["columns"] for r in timed} - {1}):
        some = [r for r in timed if r["columns"] == k]
        wide = [c.name for c in CONTENDERS if c.widest >= k]
        sections.append(
            _table(f"{k} columns, per column, {clock}", wide, some, _each(wide))
        )
    if wall := [r for r in products if r["clock"] == WALL.name]:
        sections.append(_wall(wall))
    sections.append(_construction(rows))
    sections.append(_memory([r for r in rows if r["what"] == "peak memory"]))
    sections.append(_eigenvalues([r for r in rows if r["what"] == "eigenvalues"]))
    return sections


def _each(names: Sequence[str]) -> Callable[[Row], list[str]]:
    return lambda row: [cell(row, name) for name in names]


def _wall(rows: list[Row]) -> str:
    """One line per network, matrix and number of columns."""

    def cells(row: Row) -> list[str]:
        return [str(row["columns"]), *(cell(row, name) for name in MAIN)]

    title = f"Per column, {WALL.name}"
    return _table(title, ["columns", *MAIN], rows, cells)


def _construction(rows: list[Row]) -> str:
    """Building with the check, and what linearising costs and keeps."""
    built = [r for r in rows if r["what"] == "construction"]
    set_up = {_case(r): r for r in rows if r["what"] == "set-up"}

    def cells(row: Row) -> list[str]:
        other = set_up.get(_case(row))
        kept = other["contenders"][LINEARISED].get("nbytes") if other else None
        size = "–" if kept is None else f"{kept / 2**20:.1f} MiB"
        return [cell(row, BASELINE), cell(row, PLAIN), cell(other, LINEARISED), size]

    names = [BASELINE, PLAIN, "linearising, once", "kept by it"]
    title = "Construction with the determinism check, in gradients"
    return _table(title, names, built, cells)


def _memory(rows: list[Row]) -> str:
    """Megabytes, and the ratio to the baseline."""

    def cells(row: Row) -> list[str]:
        unit = row["gradient"]["median"]
        width = 4 if row["dtype"] == "float32" else 2
        block = width * row["parameters"] * row["columns"]
        sizes = [_size(row["contenders"].get(name)) for name in MAIN]
        return [str(row["columns"]), _mib(block), _mib(unit) if unit else "< 1", *sizes]

    names = ["columns", "the result alone", "a gradient", *MAIN]
    return _table("Peak memory in MiB, set-up included", names, rows, cells)


def _size(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "–"
    if "failure" in figures:
        return "fails"
    ratio = f" ({number(figures['ratio'])})" if "ratio" in figures else ""
    return _mib(figures["median"]) + ratio


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f}"


def _eigenvalues(rows: list[Row]) -> str:
    """Cost in gradients, and the products that Lanczos asked for."""

    def cells(row: Row) -> list[str]:
        counts = [str(row["contenders"].get(n, {}).get("products", "–")) for n in MAIN]
        return [*(cell(row, name) for name in MAIN), " / ".join(counts)]

    title = "Ten top eigenvalues with SciPy, from nothing, in gradients"
    return _table(title, [*MAIN, "products"], rows, cells)


def _table(
    title: str,
    names: Sequence[str],
    rows: Iterable[Row],
    cells: Callable[[Row], list[str]],
) -> str:
    """A section, one line per row; empty without rows."""
    lines = [[_title(r), r["matrix"], *cells(r)] for r in rows]
    if not lines:
        return ""
    return f"### {title}\n\n" + markdown(["network", "matrix", *names], lines)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _summary(rows: list[Row]) -> str:
    """The Hessian with one vector, for the README."""
    chosen = [
        r
        for r in rows
        if (r["what"], r["columns"], r["matrix"], r["clock"])
        == ("product", 1, "Hessian", CPU.name)
    ]
    lines = [[_title(r), *(cell(r, name) for name in MAIN)] for r in chosen]
    return markdown(["Hessian, one vector", *MAIN], lines)


def _machines(runs: list[dict[str, Any]], rows: list[Row]) -> str:
    """Where, when and with which versions."""
    lines = []
    for i, run in enumerate(runs):
        if not any(r["run"] == i for r in rows):
            continue
        where = run["gpu"] or f"{run['processor']}, {run['cores']} cores"
        versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items() if v)
        lines.append(f"{run['date']}: {where}; Python {run['python']}, {versions}.")
    return "\n".join(lines)


def _notes(rows: list[Row]) -> str:
    """How far quartiles are from medians, how often it was measured, who refused what."""
    samples = [
        c
        for r in rows
        for c in r["contenders"].values()
        if r["what"] == "product" and "repetitions" in c
    ]
    if not samples:
        return ""
    spread = sorted((c["upper"] - c["lower"]) / c["median"] for c in samples)
    fewest = min(c["repetitions"] for c in samples)
    most = max(c["repetitions"] for c in samples)
    runs = str(most) if fewest == most else f"{fewest} to {most}"
    notes = [
        f"Products: medians of {runs} runs. The distance between the quartiles is below "
        f"{spread[len(spread) // 2]:.0%} of the median for half of the figures, below "
        f"{spread[9 * len(spread) // 10]:.0%} for nine in ten."
    ]
    failures: dict[str, list[str]] = {}
    for r in rows:
        for name, figures in r["contenders"].items():
            if "failure" in figures:
                where = failures.setdefault(f"{name}: `{figures['failure']}`", [])
                place = f"{_title(r)} ({r['matrix']})"
                where += [] if place in where else [place]
    if failures:
        notes.append("Refusals and failures:")
        listed = [f"- {', '.join(where)}; {what}" for what, where in failures.items()]
        notes.append("\n".join(listed))
    return "\n\n".join(notes)


def _case(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("network", "device", "dtype", "matrix"))


def _place(row: Row) -> tuple[Any, ...]:
    network, matrix = ORDER.index(row["network"]), MATRICES.index(row["matrix"])
    return row["device"], network, row["dtype"] != "float32", matrix, row["columns"]


def _title(row: Row) -> str:
    return row["title"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")
