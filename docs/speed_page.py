"""The figure and the tables of "How fast?", from the committed benchmark results.

A Sphinx extension: it writes ``_generated/`` before the pages are read, so that they
cannot say anything else than the results do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
TARGET = re.compile(r"\s*(.+?) (\*\*)?([\d.e+-]+)(?:\*\*)?(?: \(≤ ([\d.]+)\))?")
SHORT = {  # column heads
    "MLP, batches of 256": "MLP 256",
    "MLP, batches of 32": "MLP 32",
    "deep narrow tanh": "deep tanh",
    "CNN without norm": "CNN",
    "CNN with GroupNorm": "CNN, norm",
}
TITLES = {
    "diagonals": "Exact diagonals",
    "direct": "Direct inverse",
    "estimators": "Estimators",
    "kfac": "Kronecker factors",
    "lowrank": "Factor form",
    "monitor": "Monitor",
    "preflight": "Preflight",
    "report": "Report",
    "solvers": "Linear solvers",
    "spectra": "Eigenpairs",
}
UNITS = {
    "× curvlinops": "Ratios to curvlinops",
    "gradients": "In gradients",
    "× one vector": "Ratios of one column to one vector",
}
SHOWN = {  # contenders in the figure: colour and marker
    "curvop, linearised": ("#0072B2", "o"),
    "curvop": ("#56B4E9", "o"),
    "curvlinops": ("#D55E00", "s"),
    "torch.func": ("#CC79A7", "^"),
    "hessian-eigenthings": ("#009E73", "D"),
    "PyHessian": ("#8C6D1F", "v"),
    "BackPACK": ("#666666", "P"),
}


def rows() -> list[dict[str, Any]]:
    """Products with one vector, in CPU time."""
    record = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    return [
        r
        for r in record["rows"]
        if (r["what"], r["columns"], r["device"]) == ("product", 1, "cpu")
        and r["clock"].startswith("CPU")
    ]


def targets(text: str) -> str:
    """``targets.md`` as a table for each unit, with a column for each network."""
    networks: list[str] = []
    units: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for line in text.splitlines()[2:]:
        label, matrix, unit, measured, _ = line.strip("| ").split(" | ")
        for entry in measured.split(";"):
            found = TARGET.fullmatch(entry)
            if found is None:
                raise ValueError(f"targets.md has an entry that is not understood: {entry}")
            name, bold, value, limit = found.groups()
            network, _, columns = name.partition(" × ")
            if network not in networks:
                networks.append(network)
            row = label.replace("8 and 32 columns", f"{columns} columns")
            number = f"{float(value):.2g}" if float(value) < 10 else value
            cell = f"**{number}**" if bold else number
            place = units.setdefault(unit, {}).setdefault((row, matrix), {})
            place[network] = f"{cell}\xa0/\xa0{limit}" if limit else cell
    head = ["figure", "matrix", *(SHORT.get(n, n) for n in networks)]
    parts = []
    for unit, table in units.items():
        body = [
            [*key, *(cells.get(n, "–") for n in networks)] for key, cells in table.items()
        ]
        lines = [_line(cells) for cells in [head, ["---"] * len(head), *body]]
        parts.append("\n".join([f"### {UNITS.get(unit, unit)}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figure(path: Path) -> None:
    """Gradients per product for each network and contender; wrong and refused marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = rows()
    networks = list(dict.fromkeys(r["title"] for r in measured))
    matrices = ["Hessian", "GGN", "EF"]
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "curvop"})
    fig, axes = plt.subplots(
        1, 3, figsize=(8.6, 4.3), sharey=True, sharex=True, layout="constrained"
    )
    for ax, matrix in zip(axes, matrices, strict=True):
        for r in measured:
            if r["matrix"] != matrix:
                continue
            y = len(networks) - networks.index(r["title"])
            ax.axhline(y, color="0.92", lw=0.8, zorder=0)
            for name, (colour, marker) in SHOWN.items():
                found = r["contenders"].get(name, {})
                if "gradients" not in found:
                    continue
                wrong = found.get("error", 0) > r["tolerance"]
                ax.plot(
                    found["gradients"],
                    y,
                    marker,
                    ms=6,
                    color=colour,
                    mfc="none" if wrong else colour,
                    alpha=0.9,
                )
        ax.set_title(matrix, loc="left", weight="bold")
        ax.set_xscale("log")
        ax.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        ax.minorticks_off()
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.axvline(1, color="0.75", lw=0.8, zorder=0)
        ax.set_xlabel("gradients per product")
    axes[0].set_yticks(range(len(networks), 0, -1), networks)
    handles = [
        plt.Line2D([], [], ls="", marker=m, color=c, label=name)
        for name, (c, m) in SHOWN.items()
    ]
    handles.append(
        plt.Line2D([], [], ls="", marker="s", color="0.3", mfc="none", label="wrong")
    )
    fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def measured() -> str:
    """All other results, each under a heading of its own, its own headings a level down."""
    parts = []
    for path in sorted(RESULTS.glob("*.md"), key=lambda p: (p.stem not in TITLES, p.stem)):
        if path.stem in ("speed", "summary", "targets"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines[0].startswith("# "):
            lines = lines[1:]
        body = "\n".join("#" + s if re.match("##+ ", s) else s for s in lines).strip()
        parts.append(f"## {TITLES.get(path.stem, path.stem.capitalize())}\n\n{body}\n")
    return "\n".join(parts)


def write(folder: Path = HERE / "_generated") -> None:
    """All that the pages include."""
    folder.mkdir(exist_ok=True)
    text = (RESULTS / "targets.md").read_text(encoding="utf-8")
    _write(folder / "targets.md", targets(text))
    _write(folder / "measured.md", measured())
    speed = (RESULTS / "speed.md").read_text(encoding="utf-8")
    machine = next(line for line in speed.splitlines() if line.startswith("20"))
    _write(folder / "machine.md", machine + "\n")
    if not (folder / "speed.svg").exists() or (
        (folder / "speed.svg").stat().st_mtime < (RESULTS / "speed.json").stat().st_mtime
    ):
        figure(folder / "speed.svg")


def _write(path: Path, text: str) -> None:
    """Only what has changed, so that Sphinx reads no page twice."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write())
    return {"parallel_read_safe": True}
