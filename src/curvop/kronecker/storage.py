"""Factors on disk, with the names of their parameters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from curvop.checksum import checksum, not_finite
from curvop.kronecker.blocks import Block, EigenBlock, KroneckerBlock, Members
from curvop.kronecker.factors import Factors
from curvop.risk import Parameters

_TENSORS = {KroneckerBlock: ("left", "right"), EigenBlock: ("left", "right", "values")}
_VERSION = 1


def write(path: str | os.PathLike[str], kind: str, factors: Factors) -> None:
    """Write factors; the old file stays until the new one is complete."""
    path = Path(path)
    tensors, blocks = {}, []
    for i, block in enumerate(factors.blocks):
        members = block.members
        blocks.append([members.positions, members.groups, members.rows])
        for name in _TENSORS[type(block)]:
            t = getattr(block, name)
            if t is not None:
                tensors[f"{i}.{name}"] = t.detach().contiguous()
    header = {
        "version": _VERSION,
        "kind": kind,
        "names": factors.space.names,
        "shapes": [list(s) for s in factors.space.shapes],
        "blocks": blocks,
    }
    part = path.with_name(path.name + ".part")
    try:
        _save(part, tensors, json.dumps(header), safe=path.suffix == ".safetensors")
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str], kind: str, at: Parameters) -> Factors:
    """Read factors for these parameters.

    A file without a checksum, written by a version that had none, is read as well.

    Raises:
        ValueError: If they belong to others, are not those that were written, or not
            finite; or if the file holds something else.
    """
    path = Path(path)
    tensors, text, written = _load(path, safe=path.suffix == ".safetensors")
    mend = "Copy the file anew, or compute the factors again and save() them."
    if written not in (None, checksum([text, tensors])):
        raise ValueError(
            f"Expected the factors in {path} as they were written, got content that "
            f"differs from its checksum: the file was damaged. {mend}"
        )
    if broken := ", ".join(not_finite(tensors)):
        raise ValueError(
            f"Expected finite factors in {path}, got inf or nan in {broken}. {mend}"
        )
    header = json.loads(text)
    if header["version"] != _VERSION or header["kind"] != kind:
        raise ValueError(
            f"Expected a file of {kind}, version {_VERSION}, got {header['kind']}, version "
            f"{header['version']}. Load it with its own class."
        )
    space = at.space
    names = None if header["names"] is None else tuple(header["names"])
    if names != space.names:
        raise ValueError(
            f"Expected factors of the parameters {_list(space.names)}, got those of "
            f"{_list(names)}. Pass the parameters in the order in which they were saved."
        )
    shapes = tuple(Size(s) for s in header["shapes"])
    if shapes != space.shapes:
        raise ValueError(
            f"Expected factors of parameters of shapes {[tuple(s) for s in space.shapes]}, "
            f"got {[tuple(s) for s in shapes]}."
        )
    cls = KroneckerBlock if kind == "KFACLinearOperator" else EigenBlock
    blocks: list[Block] = []
    for i, (positions, groups, rows) in enumerate(header["blocks"]):
        members = Members(
            tuple(positions), tuple(shapes[p] for p in positions), groups, rows
        )
        parts = [tensors.get(f"{i}.{name}") for name in _TENSORS[cls]]
        moved = [None if t is None else t.to(at.device) for t in parts]
        blocks.append(cls(members, *moved))  # type: ignore[arg-type]
    return Factors(space, at.dtype, at.device, tuple(blocks))


def _list(names: tuple[str, ...] | None) -> object:
    return "without names" if names is None else list(names)


def _save(path: Path, tensors: dict[str, Tensor], header: str, *, safe: bool) -> None:
    digest = checksum([header, dict(sorted(tensors.items()))])
    if not safe:
        torch.save({"tensors": tensors, "header": header, "checksum": digest}, path)
        return
    # each tensor has memory of its own there: blocks may share a factor
    apart = {name: t.clone() for name, t in tensors.items()}
    _safetensors().save_file(apart, path, metadata={"curvop": header, "checksum": digest})


def _load(path: Path, *, safe: bool) -> tuple[dict[str, Tensor], str, str | None]:
    """Tensors in the order of their names, header, and checksum if there is one.

    Raises:
        ValueError: If the file holds something else.
    """
    reader = _safetensors() if safe else torch
    with open(path, "rb") as opened:
        try:
            if not safe:
                stored = reader.load(opened, weights_only=True, map_location="cpu")
                tensors = dict(sorted(stored["tensors"].items()))
                return tensors, stored["header"], stored.get("checksum")
            with reader.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
                return tensors, metadata["curvop"], metadata.get("checksum")
        except Exception as e:  # whatever the readers make of foreign bytes
            raise ValueError(f"Expected a file of Kronecker factors, got {path}.") from e


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as e:
        raise ImportError(
            "Files that end in .safetensors need safetensors: pip install "
            '"curvop[safetensors]". Any other name is written by torch.save.'
        ) from e

    class Both:
        save_file = staticmethod(safetensors.torch.save_file)
        safe_open = staticmethod(safetensors.safe_open)

    return Both
