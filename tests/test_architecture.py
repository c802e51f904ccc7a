"""The rules of the house, held against all of its imports, and against its own page."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import curvop

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, path.stem, module)
        spec.loader.exec_module(module)
    return module


rooms = loaded(ROOT / "docs" / "rooms.py")
IMPORTS = list(rooms.imports())
MODULES: dict[str, Path] = rooms.modules()
ACROSS = [i for i in IMPORTS if rooms.room_of(i.importer) != rooms.room_of(i.module)]


def is_door(i: Any) -> bool:
    return (i.importer, i.module) in rooms.DOORS


# -------------------------------------------------------------------------- imports


def test_every_room_has_its_floor() -> None:
    source = ROOT / "src" / "curvop"
    assert {p.parent.name for p in source.glob("*/__init__.py")} == set(rooms.ROOMS)


def test_arrows_point_one_way() -> None:
    rank = {room: i for i, room in enumerate(rooms.ROOMS)}
    above = [
        f"{i.importer}:{i.line} imports {i.module}"
        for i in ACROSS
        if rooms.room_of(i.importer) and rooms.room_of(i.module) and not is_door(i)
        if rank[rooms.room_of(i.module)] > rank[rooms.room_of(i.importer)]
    ]
    assert not above


def test_files_beside_the_rooms_know_operators_at_most() -> None:
    for i in IMPORTS:
        if i.importer in ("curvop", "curvop.__main__") or rooms.room_of(i.importer):
            continue
        assert rooms.room_of(i.module) in ("", "operators"), i


@pytest.mark.parametrize("room", ["solvers", "spectra", "estimators"])
def test_who_solves_knows_operators_only(room: str) -> None:
    numerical = {"", "operators", "solvers", "spectra", "estimators"}
    mine = [i for i in IMPORTS if rooms.room_of(i.importer) == room]
    assert {rooms.room_of(i.module) for i in mine} <= numerical


def test_nobody_imports_the_library_as_a_whole() -> None:
    for i in IMPORTS:
        if i.module == "curvop" and i.importer not in ("curvop", "curvop.__main__"):
            assert {f"curvop.{name}" for name in i.names} <= set(MODULES), i


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for types and inside of functions included; the doors are two."""
    graph: dict[str, set[str]] = defaultdict(set)
    for i in IMPORTS:
        if is_door(i):
            continue
        for name in i.names or ("",):
            file = f"{i.module}.{name}"
            graph[i.importer].add(
                file if file in MODULES and not is_public(i) else i.module
            )
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module] & set(MODULES) - {module}):
                walk(other, (*path, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


def is_public(i: Any) -> bool:
    """Whether what is imported is a room's public name, although a file has the same."""
    is_room = i.module == f"curvop.{rooms.room_of(i.module)}"
    return is_room and rooms.room_of(i.importer) != rooms.room_of(i.module)


def test_rooms_take_public_names_of_others_only() -> None:
    for i in ACROSS:
        room = rooms.room_of(i.module)
        if not room or i.importer == "curvop":
            continue
        assert i.module == f"curvop.{room}", f"{i.importer}:{i.line} imports {i.module}"
        public = set(importlib.import_module(i.module).__all__)
        assert set(i.names) <= public, f"{i.importer}:{i.line}: {set(i.names) - public}"


def test_what_a_room_exports_is_sorted_and_there() -> None:
    for room in rooms.ROOMS:
        module = importlib.import_module(f"curvop.{room}")
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)
        assert not any(name.startswith("_") for name in module.__all__)


def test_no_private_names_of_another_room() -> None:
    """``x._name`` of something that is not ``self``, where only other rooms define it."""
    trees = {m: ast.parse(p.read_text(encoding="utf-8")) for m, p in MODULES.items()}
    defined: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for node in ast.walk(tree):
            name = ""
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = node.attr
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            if name.startswith("_"):
                defined[name].add(rooms.room_of(module))
    found = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            owner = ast.unparse(node.value)
            is_own = owner in ("self", "cls", "super()") or node.attr.startswith("__")
            elsewhere = defined[node.attr] - {rooms.room_of(module)}
            is_here = rooms.room_of(module) in defined[node.attr]
            is_torchs = node.attr in TORCHS and owner not in OURS
            if elsewhere and not (is_here or is_own or is_torchs):
                found.append(f"{module}:{node.lineno} {owner}.{node.attr}")
    assert not found


# Private names that torch has, too.
TORCHS = {"_version", "_buffers", "_modules", "_parameters"}
OURS = {"op", "A", "H", "J", "G", "self._op", "self._A", "self._H", "self._J"}


def test_doors_are_opened_when_called_and_say_why() -> None:
    opened = {(i.importer, i.module): i for i in IMPORTS if is_door(i) and i.is_local}
    assert set(opened) == rooms.DOORS
    for i in opened.values():
        lines = MODULES[i.importer].read_text(encoding="utf-8").splitlines()
        assert lines[i.line - 2].strip().startswith("# the door up"), i


# ----------------------------------------------------------------------------- the page


def test_picture_is_that_of_the_imports() -> None:
    """Mended by ``python docs/rooms.py``."""
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture()
    assert "pictures/rooms.svg" in PAGE.read_text(encoding="utf-8")


def test_every_room_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [room for room in rooms.ROOMS if f"`{room}/`" not in page]


def test_what_is_where_is_there() -> None:
    """Each row of the table names a file and what is defined in it."""
    page = PAGE.read_text(encoding="utf-8").split("## Where is what")[1]
    rows = re.findall(r"^\| ([^|]+?) \| `([\w/]+\.py)`: (.+?) \|$", page, re.MULTILINE)
    assert len(rows) >= 30
    for question, file, names in rows:
        tree = ast.parse((ROOT / "src" / "curvop" / file).read_text(encoding="utf-8"))
        defined = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
        for name in re.findall(r"`(\w+)`", names):
            assert name in defined, f"{question} {file} does not define {name}"


# ------------------------------------------------------------------------ the public door

# Names that a user receives and never calls: they are in their rooms.
RECEIVED = {
    "Directions": "lowrank",
    "GramFactor": "lowrank",
    "LinearizedJacobianLinearOperator": "linearized",
    "NewtonStep": "lowrank",
    "SingularTriplets": "spectra",
}


def described(x: Any) -> list[list[str | None]] | None:
    """Names, kinds and defaults of the parameters."""
    try:
        parameters = inspect.signature(x).parameters.values()
    except (TypeError, ValueError):
        return None

    def default(p: inspect.Parameter) -> str | None:
        return None if p.default is p.empty else repr(p.default).split(" at 0x")[0]

    return [[p.name, p.kind.name, default(p)] for p in parameters]


def test_signatures_are_those_of_before_the_rooms() -> None:
    """``signatures.json`` was written before anything moved; what is new may be added."""
    before = json.loads((Path(__file__).parent / "signatures.json").read_text("utf-8"))
    for path, signature in before.items():
        name, _, member = path.partition(".")
        if name in RECEIVED:
            assert name not in curvop.__all__
            room = importlib.import_module(f"curvop.{RECEIVED[name]}")
            x = getattr(room, name)
        else:
            assert name in curvop.__all__
            x = getattr(curvop, name)
        if path in ("LinearizedLinearOperator", "LinearizedJacobianLinearOperator"):
            continue  # made by linearize() alone
        if member:
            x = getattr(x, member)
        now = described(x) if callable(x) else "property"
        assert now == signature, path
