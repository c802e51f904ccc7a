"""Blocks: a vector or matrix as one tensor or as blocks, in and out in the same form.

A *block space* is a tuple of shapes. A matrix with ``K`` columns over it is a list of
blocks ``[*n_i, K]``. Users pass tensors, sequences or mappings, with or without the
column axis; :func:`read` turns each into blocks and a :class:`Form`, and
:func:`Form.write` turns blocks back into that form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from torch import Size, Tensor

Blocks = list[Tensor]
Side = Literal["right", "left"]
Vector = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Space:
    """A product of tensor shapes, optionally with a name for each.

    Attributes:
        shapes: One shape per block.
        names: One name per block, or ``None``.
    """

    shapes: tuple[Size, ...]
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse names that are not unique, or not one for each block."""
        if self.names is not None and len(set(self.names)) != len(self.shapes):
            raise ValueError(
                f"Expected a name of its own for each of {len(self.shapes)} blocks, got "
                f"{list(self.names)}."
            )

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each block."""
        return [shape.numel() for shape in self.shapes]

    @property
    def dim(self) -> int:
        """Number of entries over all blocks."""
        return sum(self.sizes)

    def index(self, name: str) -> slice:
        """Flat positions of the block with this name.

        Raises:
            ValueError: If no block has this name.
        """
        if self.names is None or name not in self.names:
            known = "blocks have no names" if self.names is None else list(self.names)
            raise ValueError(f"Expected the name of a block ({known}), got {name!r}.")
        i = self.names.index(name)
        start = sum(self.sizes[:i])
        return slice(start, start + self.sizes[i])

    def positions(self, index: Any, device: torch.device) -> Tensor:
        """Flat positions that an index selects, as ``int64`` on ``device``.

        Raises:
            TypeError: If the index is of an unknown kind.
            IndexError: If it is out of range.
            ValueError: If a mask has the wrong length or a name is unknown.
        """
        N = self.dim
        if isinstance(index, str):
            index = self.index(index)
        if isinstance(index, slice):
            return torch.tensor(range(N)[index], dtype=torch.int64, device=device)
        if isinstance(index, Sequence) and index and isinstance(index[0], str):
            return torch.cat([self.positions(name, device) for name in index])
        if isinstance(index, numpy.ndarray):
            index = index.copy()  # torch knows no negative strides
        try:
            where = torch.as_tensor(index, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                "Expected an integer, slice, mask, list of positions or parameter names as "
                f"index, got {type(index).__name__}."
            ) from error
        if where.numel() == 0 and where.dtype != torch.bool:
            where = where.long()
        if where.ndim == 0:
            where = where[None]
        if where.ndim != 1 or where.is_floating_point() or where.is_complex():
            raise TypeError(
                "Expected one-dimensional integer positions or a boolean mask, got "
                f"{where.dtype} of shape {tuple(where.shape)}."
            )
        if where.dtype == torch.bool:
            if where.shape[0] != N:
                raise ValueError(f"Expected a mask of length {N}, got {where.shape[0]}.")
            return where.nonzero()[:, 0]
        where = where.long()
        if bool(((where < -N) | (where >= N)).any()):
            raise IndexError(f"Expected positions in [-{N}, {N}), got {where.tolist()}.")
        return where % N


@dataclass(frozen=True)
class Form:
    """The form in which a vector or matrix was passed.

    Attributes:
        kind: One tensor, a list, a tuple, or a mapping of blocks.
        is_vector: Whether the column axis was missing.
        side: Whether columns come last (``A @ x``) or rows first (``x @ A``).
    """

    kind: Literal["tensor", "list", "tuple", "dict"]
    is_vector: bool
    side: Side

    def write(self, blocks: Blocks, space: Space) -> Vector:
        """Turn blocks ``[*m_i, K]`` over ``space`` into this form.

        For a mapping, blocks without names become a list.
        """
        if self.is_vector:
            blocks = [b.squeeze(-1) for b in blocks]
        else:
            blocks = [b.movedim(-1, 0) for b in blocks]  # K leads
        if self.kind == "tensor":
            if self.is_vector:
                return torch.cat([b.reshape(-1) for b in blocks])
            sizes = zip(blocks, space.sizes, strict=True)
            flat = torch.cat([b.reshape(len(b), n) for b, n in sizes], 1)  # [K, M]
            return flat if self.side == "left" else flat.T
        if not self.is_vector and self.side == "right":
            blocks = [b.movedim(0, -1) for b in blocks]
        if self.kind == "dict" and space.names is not None:
            return dict(zip(space.names, blocks, strict=True))
        return tuple(blocks) if self.kind == "tuple" else blocks


def merge(a: Space, b: Space, what: str) -> Space:
    """One space for two that must be equal; block structure and names survive.

    A flat space ``[N]`` (a dense matrix, say) fits every space with ``N`` entries: the
    one with more structure is kept.

    Raises:
        ValueError: If the spaces differ.
    """
    if a.shapes == b.shapes:
        return Space(a.shapes, a.names if a.names == b.names else a.names or b.names)
    if a.dim == b.dim and (_is_flat(a) or _is_flat(b)):
        return b if _is_flat(a) else a
    raise ValueError(
        f"Expected operators with the same {what}, got blocks "
        f"{[tuple(s) for s in a.shapes]} and {[tuple(s) for s in b.shapes]}."
    )


def _is_flat(space: Space) -> bool:
    return len(space.shapes) == 1 and len(space.shapes[0]) == 1


def flatten(M: Blocks) -> Tensor:
    """Blocks ``[*n_i, K]`` as one matrix ``[N, K]``."""
    parts = [b.reshape(-1, b.shape[-1]) for b in M]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def unflatten(flat: Tensor, space: Space) -> Blocks:
    """One matrix ``[N, K]`` as blocks ``[*n_i, K]``."""
    parts = zip(flat.split(space.sizes), space.shapes, strict=True)
    return [b.reshape(*shape, flat.shape[-1]) for b, shape in parts]


def reshape(M: Blocks, space: Space) -> Blocks:
    """View blocks over one space as blocks over another with as many entries."""
    same = [b.shape[:-1] for b in M] == list(space.shapes)
    return M if same else unflatten(flatten(M), space)


def read(x: Vector, space: Space, side: Side = "right") -> tuple[Blocks, Form]:
    """A user's vector or matrix as blocks ``[*n_i, K]``, and the form that it had.

    Args:
        x: A tensor ``[N]`` or ``[N, K]`` (from the left ``[K, N]``), a sequence of
            blocks ``[*n_i]`` or ``[*n_i, K]`` (from the left ``[K, *n_i]``), or a
            mapping from block names to such blocks.
        space: The block space that ``x`` must belong to.
        side: Which side of the operator ``x`` stands on.

    Returns:
        The blocks, with the column axis last, and the form. A matrix given as one
        tensor is copied once, so that every column is contiguous.

    Raises:
        TypeError: If ``x`` is none of the accepted kinds.
        ValueError: If a shape, the number of blocks or the names do not fit.
    """
    if isinstance(x, Tensor):
        return _read_tensor(x, space, side)
    if isinstance(x, Mapping):
        return _read_mapping(x, space, side)
    if isinstance(x, list | tuple):
        blocks, is_vector = _read_sequence(x, space, side)
        return blocks, Form("tuple" if isinstance(x, tuple) else "list", is_vector, side)
    raise TypeError(
        "Expected a tensor, a list or tuple of tensors, a dict of tensors or an "
        f"operator, got {type(x).__name__}. Convert a NumPy array with "
        "torch.from_numpy, or use .to_scipy()."
    )


def _read_tensor(x: Tensor, space: Space, side: Side) -> tuple[Blocks, Form]:
    N = space.dim
    axis = 0 if side == "right" else -1
    if x.ndim not in (1, 2) or x.shape[axis] != N:
        matrix = f"({N}, K)" if side == "right" else f"(K, {N})"
        raise ValueError(
            f"Expected shape ({N},) or {matrix}, got {tuple(x.shape)}: the operator "
            f"needs {N} entries per vector."
        )
    is_vector = x.ndim == 1
    rows = x[None] if is_vector else (x.T if side == "right" else x)
    rows = rows.contiguous()  # the one copy: columns contiguous for autograd
    blocks = [
        b.reshape(len(b), *shape).movedim(0, -1)
        for b, shape in zip(rows.split(space.sizes, 1), space.shapes, strict=True)
    ]
    return blocks, Form("tensor", is_vector, side)


def _read_mapping(x: Mapping[str, Tensor], space: Space, side: Side) -> tuple[Blocks, Form]:
    if space.names is None:
        raise TypeError(
            "Expected a tensor or a list of blocks, got a dict: the blocks of this "
            "operator have no names."
        )
    missing = [name for name in space.names if name not in x]
    foreign = [name for name in x if name not in space.names]
    if missing or foreign:
        raise ValueError(
            f"Expected the keys {list(space.names)}, got {list(x)} (missing: "
            f"{missing}, not known: {foreign})."
        )
    blocks, is_vector = _read_sequence([x[name] for name in space.names], space, side)
    return blocks, Form("dict", is_vector, side)


def _read_sequence(x: Sequence[Tensor], space: Space, side: Side) -> tuple[Blocks, bool]:
    for i, b in enumerate(x):
        if not isinstance(b, Tensor):
            raise TypeError(
                f"Expected blocks that are tensors, got {type(b).__name__} at position {i}."
            )
    if len(x) != len(space.shapes):
        raise ValueError(
            f"Expected {len(space.shapes)} blocks of shapes {_show(space.shapes)}, got "
            f"{len(x)}."
        )
    got = [b.shape for b in x]
    if all(b == n for b, n in zip(got, space.shapes, strict=True)):
        return [b.unsqueeze(-1) for b in x], True
    K = {b[-1 if side == "right" else 0] for b in got if len(b) > 0}
    if len(K) == 1:
        (k,) = K
        if side == "right" and got == [Size((*n, k)) for n in space.shapes]:
            return list(x), False
        if side == "left" and got == [Size((k, *n)) for n in space.shapes]:
            return [b.movedim(0, -1) for b in x], False
    where = "a trailing K" if side == "right" else "a leading K"
    raise ValueError(
        f"Expected blocks of shapes {_show(space.shapes)}, each with the same {where} "
        f"for a matrix, got {_show(got)}."
    )


def _show(shapes: Sequence[Size]) -> str:
    return "[" + ", ".join(str(tuple(s)) for s in shapes) + "]"


def admit(b: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Promote integers; refuse what would be truncated or copied across devices.

    Raises:
        TypeError: If the dtype differs.
        ValueError: If the device does.
    """
    if b.device != device:
        raise ValueError(
            f"Expected a vector on {device}, got one on {b.device}. Move it "
            f"with .to({str(device)!r})."
        )
    if b.is_complex():
        if b.dtype.to_real() != dtype and dtype.itemsize > 2:
            raise TypeError(
                f"Expected {dtype.to_complex()}, got {b.dtype}. Convert it "
                f"with .to({dtype.to_complex()})."
            )
        return b
    if not b.dtype.is_floating_point:
        return b.to(dtype)
    if b.dtype != dtype:
        raise TypeError(
            f"Expected a vector of dtype {dtype}, got {b.dtype}. Convert it "
            f"with .to({dtype})."
        )
    return b
