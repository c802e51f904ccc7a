"""What the library set out to reach, and what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peers import LINEARISED, MATRICES, PLAIN
from timing import BYTES, CPU

Row = dict[str, Any]
SQUARE = ("GGN", "EF")


@dataclass(frozen=True)
class Target:
    """A bound on a ratio to curvlinops, or on a cost in gradients."""

    label: str
    what: str
    contender: str
    matrices: tuple[str, ...]
    measure: Literal["ratio", "gradients"]
    limit: float | None = None  # for all networks, where `limits` says nothing else
    limits: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[int, ...] | None = (1,)  # None: as many as were measured

    def limit_of(self, network: str) -> float | None:
        return self.limits.get(network, self.limit)


_ONE, _MANY = "one vector", "8 and 32 columns, linearised"
_H = ("Hessian",)
_MEMORY, _CONSTRUCTION = "peak memory, 32 columns", "construction with the check"

TARGETS = (
    Target(
        f"{_ONE}, nothing kept",
        "product",
        PLAIN,
        _H,
        "ratio",
        limits={"mlp": 0.7, "gpt": 0.7, "cnn": 1.0, "cnn_gn": 1.0, "deep": 0.35},
    ),
    Target(
        f"{_ONE}, linearised",
        "product",
        LINEARISED,
        _H,
        "ratio",
        limits={
            **dict.fromkeys(("mlp", "gpt"), 0.45),
            **dict.fromkeys(("cnn", "cnn_gn"), 0.6),
            "mlp32": 0.15,
            "deep": 0.08,
        },
    ),
    Target(f"{_ONE}, linearised", "product", LINEARISED, _H, "gradients", 2.2),
    Target(f"{_ONE}, nothing kept", "product", PLAIN, SQUARE, "ratio", 0.75),
    Target(
        f"{_ONE}, linearised",
        "product",
        LINEARISED,
        SQUARE,
        "ratio",
        0.55,
        {"mlp": 0.4, "deep": 0.1},
    ),
    Target(
        f"{_ONE}, linearised",
        "product",
        LINEARISED,
        SQUARE,
        "gradients",
        1.6,
        {"mlp": 1.0},
    ),
    Target(
        _MANY,
        "product",
        LINEARISED,
        MATRICES,
        "ratio",
        0.75,
        {"mlp32": 0.3, "deep": 0.3},
        (8, 32),
    ),
    Target(_CONSTRUCTION, "construction", PLAIN, MATRICES, "ratio", 0.5),
    Target(_CONSTRUCTION, "construction", PLAIN, MATRICES, "gradients", 6),
    Target("set-up, stated", "set-up", LINEARISED, MATRICES, "gradients"),
    Target(
        f"{_MEMORY}, nothing kept", "peak memory", PLAIN, MATRICES, "ratio", 0.5, {}, None
    ),
    Target(
        f"{_MEMORY}, linearised",
        "peak memory",
        LINEARISED,
        MATRICES,
        "ratio",
        0.5,
        {},
        None,
    ),
    Target("ten top eigenvalues, end to end", "eigenvalues", LINEARISED, _H, "ratio", 0.35),
)

HEAD = ["figure", "matrix", "in", "measured (target)", "missed"]


def table(rows: list[Row]) -> str:
    """Each target, what was measured, and which networks miss it."""
    rows = [r for r in rows if r["device"] == "cpu"]
    rows = [r for r in rows if r["clock"] in (CPU.name, BYTES)]
    lines = [line for t in TARGETS for m in t.matrices for line in _lines(t, m, rows)]
    lines += [line for m in MATRICES for line in _never_above_one_vector(m, rows)]
    cells = [HEAD, ["---"] * len(HEAD), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _lines(target: Target, matrix: str, rows: list[Row]) -> Iterator[list[str]]:
    measured = []
    for r in rows:
        if (r["what"], r["matrix"]) != (target.what, matrix):
            continue
        if target.columns is not None and r["columns"] not in target.columns:
            continue
        value = r["contenders"].get(target.contender, {}).get(target.measure)
        limit = target.limit_of(r["network"])
        if value is None or (limit is None and target.what != "set-up"):
            continue
        measured.append((r, value, limit))
    unit = "gradients" if target.measure == "gradients" else "× curvlinops"
    if measured:
        yield _line(target.label, matrix, unit, measured)


def _never_above_one_vector(matrix: str, rows: list[Row]) -> Iterator[list[str]]:
    """The cost per column of several columns over that of one vector."""
    costs = {}
    for r in rows:
        if (r["what"], r["matrix"]) == ("product", matrix):
            cost = r["contenders"].get(LINEARISED, {}).get("gradients")
            costs[r["network"], r["columns"]] = (r, cost)
    measured = []
    for (network, columns), (r, cost) in costs.items():
        _, one = costs.get((network, 1), (None, None))
        if columns > 1 and cost is not None and one is not None:
            measured.append((r, cost / one, 1.0))
    if measured:
        yield _line(f"{_MANY}, per column", matrix, "× one vector", measured)


def _line(label: str, matrix: str, unit: str, measured: list[Any]) -> list[str]:
    """All networks in one cell, those that miss their target in another."""
    texts, missed = [], []
    for r, value, limit in measured:
        several = len({m[0]["columns"] for m in measured}) > 1
        name = r["title"] + (f" × {r['columns']}" if several else "")
        bound = "" if limit is None else f" (≤ {limit:g})"
        is_met = limit is None or value <= limit
        figure = f"{value:.3g}" if value < 10 else f"{value:.0f}"
        texts.append(f"{name} {figure if is_met else f'**{figure}**'}{bound}")
        missed += [] if is_met else [name]
    verdict = ", ".join(missed) or ("–" if measured[0][2] is None else "none")
    return [label, matrix, unit, "; ".join(texts), verdict]
