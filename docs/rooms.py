"""The rooms of the library, read from its own imports, and a picture of them.

Run as a program, it writes ``docs/pictures/rooms.svg``; the tests compare that file, and
the rules of the house, with what is read here.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src"
PICTURE = DOCS / "pictures" / "rooms.svg"

# The doors up: methods of curvature matrices that build on what is built on those. They are
# local imports; what `factor()` returns is imported for its type as well.
DOORS = {
    ("curvop.curvature.differentiated", "curvop.linearized"),
    ("curvop.curvature.factorable", "curvop.lowrank"),
}

# From the bottom to the top: a room imports from those before it.
ROOMS = (
    *("operators", "autograd", "risk", "layers", "derivatives", "curvature"),
    *("linearized", "functional", "diagonals", "kronecker", "lowrank", "direct"),
    *("solvers", "spectra", "estimators"),
    *("inspection", "monitoring", "plot", "reporting"),
)
# Where the picture has them: from the bottom to the top, from left to right.
FLOORS = (
    ("operators",),
    ("autograd", "", "spectra", "solvers", "estimators"),
    ("layers", "risk"),
    ("derivatives",),
    ("curvature",),
    ("functional", "linearized", "direct"),
    ("diagonals", "kronecker", "lowrank"),
    ("inspection", "monitoring", "plot", "reporting"),
)


@dataclass(frozen=True)
class Import:
    """One import of a module of ours, wherever in a file it stands.

    Attributes:
        importer: The module that imports.
        module: What is imported from.
        names: What is imported, as named there.
        line: Where.
        is_local: Whether inside of a function.
    """

    importer: str
    module: str
    names: tuple[str, ...]
    line: int
    is_local: bool


def modules() -> dict[str, Path]:
    """Each module of ours and its file; a room is its ``__init__``."""
    found = {}
    for path in sorted((SOURCE / "curvop").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room of a module; ``""`` for the files beside the rooms."""
    room = module.split(".")[1] if "." in module else ""
    return room if room in ROOMS else ""


def imports() -> Iterator[Import]:
    """All imports, those for types and those inside of functions included."""
    for importer, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        local = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                pairs = [(node.module, tuple(alias.name for alias in node.names))]
            elif isinstance(node, ast.Import):
                pairs = [(alias.name, ()) for alias in node.names]
            else:
                continue
            for module, names in pairs:
                if module.split(".")[0] == "curvop":
                    is_local = id(node) in local
                    yield Import(importer, module, names, node.lineno, is_local)


def arrows() -> dict[str, set[str]]:
    """For each room, those that it imports from; the doors are left out."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for i in imports():
        here, there = room_of(i.importer), room_of(i.module)
        is_door = (i.importer, i.module) in DOORS
        if here and there and here != there and not is_door:
            found[here].add(there)
    return found


def necessary(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows without those that follow from others."""

    @functools.cache
    def reach(room: str) -> frozenset[str]:
        return frozenset(graph[room]).union(*(reach(other) for other in graph[room]))

    return {
        room: {a for a in targets if not any(a in reach(b) for b in targets - {a})}
        for room, targets in graph.items()
    }


def picture() -> str:
    """The rooms, floor by floor, and the arrows that do not follow from others."""
    width, height, gap = 130, 34, 74
    total, depth = 5 * (width + 24), len(FLOORS) * gap + 10
    where = {}
    for f, floor in enumerate(FLOORS):
        start = (total - len(floor) * (width + 24) + 24) / 2
        for i, room in enumerate(floor):
            where[room] = (start + i * (width + 24), depth - (f + 1) * gap + 10)
    del where[""]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {depth}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#888"/></marker>'
        "</defs>",
        f'<rect width="{total}" height="{depth}" fill="#fff"/>',
    ]
    for room, targets in necessary(arrows()).items():
        for other in sorted(targets):
            (x, y), (u, v) = where[room], where[other]
            x, u = x + width / 2, u + width / 2
            if v == y:  # on one floor: from side to side
                side = width / 2 if u > x else -width / 2
                x, u, y, v = x + side, u - side, y + height / 2, v + height / 2
            else:
                y = y + height
            lines.append(
                f'<line x1="{x:g}" y1="{y:g}" x2="{u:g}" y2="{v:g}" stroke="#888" '
                'marker-end="url(#tip)"/>'
            )
    for room, (x, y) in where.items():
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="5" '
            'fill="#eef3fb" stroke="#4a6fa5"/>'
            f'<text x="{x + width / 2:g}" y="{y + height / 2 + 5:g}">{room}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
