"""The rows ``Vᵀ`` of a Jacobian: for each parameter dense, or as outer products.

``V`` has a column for each datum and output, or for each combination ``s`` of outputs.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Size, Tensor

from curvop.operators import Blocks

# Numbers that intermediate results may have.
AT_ONCE = 2**24
# A symmetric product in so many slices does half of the work and little more.
SHARES = 4


class ParameterRows(ABC):
    """``Vᵀ`` in the columns of one parameter, for ``N`` data with ``R`` rows each."""

    @abstractmethod
    def jvp(self, v: Tensor) -> Tensor:
        """``Vᵀ v`` for ``v`` ``[K, *shape]``: ``[N, R, K]``."""

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        """``V u`` for ``u`` ``[N, R, K]``: ``[K, *shape]``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The entries, ``[N, R, p]``."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int, int]:
        """``(N, R, p)``: data, columns of each, entries of the parameter."""

    @abstractmethod
    def at(self, data: slice) -> ParameterRows:
        """That of some of the data."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> ParameterRows:
        """In another type."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept."""

    @property
    def form(self) -> tuple[Any, ...]:
        """Equal for two that can be joined; they have as many columns for each datum."""
        return type(self), [t.shape[2:] for t in self.tensors]


@final
@dataclass(frozen=True)
class Dense(ParameterRows):
    """The entries.

    Attributes:
        J: ``[N, R, *shape]``.
    """

    J: Tensor

    def jvp(self, v: Tensor) -> Tensor:
        """``Vᵀ v``."""
        return self.dense() @ v.reshape(len(v), -1).T

    def vjp(self, u: Tensor) -> Tensor:
        """``V u``."""
        flat = u.flatten(0, 1).T @ self.dense().flatten(0, 1)
        return flat.reshape(-1, *self.J.shape[2:])

    def dense(self) -> Tensor:
        """The entries, ``[N, R, p]``."""
        return self.J.reshape(self.size)

    @property
    def size(self) -> tuple[int, int, int]:
        """``(N, R, p)``."""
        N, R, *shape = self.J.shape
        return N, R, Size(shape).numel()

    def at(self, data: slice) -> Dense:
        """Some of the data."""
        return Dense(self.J[data])

    def to(self, dtype: torch.dtype) -> Dense:
        """In another type."""
        return Dense(self.J.to(dtype))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept."""
        return (self.J,)


@final
@dataclass(frozen=True)
class Outer(ParameterRows):
    """``Σ_t δ_t ⊗ z_t``: the weight of linear layers or convolutions, in ``G`` groups.

    Attributes:
        z: What goes into the layer, ``[G, N, T, d]`` for ``T`` positions.
        D: Derivatives ``δ`` with respect to what comes out, ``[G, N, R, T, m]``.
        shape: That of the parameter, with ``G·m·d`` entries.
    """

    z: Tensor
    D: Tensor
    shape: Size

    @property
    def pays(self) -> bool:
        """Whether factors are fewer numbers than their products, and cheaper."""
        return sum(t.numel() for t in self.tensors) < math.prod(self.size)

    def jvp(self, v: Tensor) -> Tensor:
        """``Vᵀ v``."""
        G, N, _, T, m = self.D.shape
        z = self.z.flatten(1, 2)  # [G, N·T, d]
        parts = []
        for W in v.split(max(1, AT_ONCE // (G * N * T * m))):
            W = W.reshape(-1, G, m, z.shape[2]).movedim(1, 0)  # [G, K, m, d]
            Wz = (z @ W.flatten(1, 2).mT).view(G, N, T, -1, m)
            parts.append(torch.einsum("gntkm,gnrtm->nrk", Wz, self.D))
        return _concatenated(parts, 2)

    def vjp(self, u: Tensor) -> Tensor:
        """``V u``."""
        G, N, _, T, m = self.D.shape
        z = self.z.flatten(1, 2)  # [G, N·T, d]
        parts = []
        for c in u.split(max(1, AT_ONCE // (G * N * T * m)), 2):
            e = torch.einsum("nrk,gnrtm->gkmnt", c, self.D)
            W = e.reshape(G, -1, N * T) @ z  # [G, K·m, d]
            W = W.view(G, c.shape[2], m, -1).movedim(0, 1)
            parts.append(W.reshape(-1, *self.shape))
        return _concatenated(parts, 0)

    def dense(self) -> Tensor:
        """The entries, ``[N, R, p]``."""
        return torch.einsum("gnrtm,gntd->nrgmd", self.D, self.z).flatten(2)

    @property
    def size(self) -> tuple[int, int, int]:
        """``(N, R, p)``."""
        _, N, R, _, _ = self.D.shape
        return N, R, self.shape.numel()

    def at(self, data: slice) -> Outer:
        """Some of the data."""
        return Outer(self.z[:, data], self.D[:, data], self.shape)

    def to(self, dtype: torch.dtype) -> Outer:
        """In another type."""
        return Outer(self.z.to(dtype), self.D.to(dtype), self.shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept."""
        return self.z, self.D


@final
@dataclass(frozen=True)
class Rows:
    """``Vᵀ`` for ``N`` data with ``R`` rows each, parameter by parameter.

    Attributes:
        parts: In the columns of each parameter; ``None`` where they are zero.
        N: Number of data.
        R: Rows of each.
    """

    parts: tuple[ParameterRows | None, ...]
    N: int
    R: int

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        tensors = [t for part in self.parts if part is not None for t in part.tensors]
        return sum(t.nbytes for t in tensors)

    def jvp(self, V: Blocks) -> Tensor:
        """``Vᵀ M`` for ``M`` ``[K, *n_i]``: ``[N, R, K]``, in the widest type."""
        total = torch.zeros((), dtype=V[0].dtype, device=V[0].device)
        total = total.expand(self.N, self.R, V[0].shape[0])
        for part, v in zip(self.parts, V, strict=True):
            if part is not None:
                total = total + part.jvp(v.to(part.tensors[-1].dtype))
        return total

    def vjp(self, U: Tensor, shapes: Sequence[Size]) -> Blocks:
        """``V U`` for ``U`` ``[N, R, K]``: ``[K, *n_i]``."""
        return [
            U.new_zeros(U.shape[2], *shape)
            if part is None
            else part.vjp(U.to(part.tensors[-1].dtype)).to(U.dtype)
            for part, shape in zip(self.parts, shapes, strict=True)
        ]

    def gram(self, other: Rows, dtype: torch.dtype, device: torch.device) -> Tensor:
        """``Vᵀ V'``, ``[N·R, N'·R']``."""
        K = torch.zeros(self.N, self.R, other.N, other.R, dtype=dtype, device=device)
        for a, b in zip(self.parts, other.parts, strict=True):
            if a is not None and b is not None:
                K += gram(a, b, dtype)
        return K.flatten(2).flatten(0, 1)


def joined(rows: Sequence[Rows]) -> list[Rows]:
    """Fewer and larger ones with the same rows in the same order."""
    groups = [list(group) for _, group in itertools.groupby(rows, _form)]
    return [
        Rows(
            tuple(
                None if parts[0] is None else _joined(parts)
                for parts in zip(*(some.parts for some in group), strict=True)
            ),
            sum(some.N for some in group),
            group[0].R,
        )
        for group in groups
    ]


def _form(rows: Rows) -> Any:
    return rows.R, [None if part is None else part.form for part in rows.parts]


def _joined(parts: Sequence[ParameterRows]) -> ParameterRows:
    """For the data of several of the same form."""
    first = parts[0]
    if isinstance(first, Outer):
        zs, Ds = zip(*(part.tensors for part in parts), strict=True)
        return Outer(_concatenated(zs, 1), _concatenated(Ds, 1), first.shape)
    return Dense(_concatenated([J for part in parts for J in part.tensors], 0))


def gram(a: ParameterRows, b: ParameterRows, dtype: torch.dtype) -> Tensor:
    """``Vᵀ V'`` in one parameter, ``[N, R, N', R']`` in this type."""
    (N, R, p), (M, Q, _) = a.size, b.size
    product: Callable[[Any, Any], Tensor] = _product_of_entries
    numbers = 0 if _is_dense(a, dtype) else R * p
    if isinstance(a, Outer) and isinstance(b, Outer) and _factors_are_cheaper(a, b):
        product, numbers = _product_of_factors, R * a.z.shape[2] * b.D[..., 0].numel()
    step = max(1, AT_ONCE // numbers) if numbers else N
    if a is b:
        step = min(step, max(1, N // SHARES))
    K = torch.empty(N, R, M, Q, dtype=dtype, device=a.tensors[0].device)
    for n in range(0, N, step):
        rows = slice(n, min(n + step, N))
        cols = slice(0, rows.stop if a is b else M)  # the rest is symmetric
        block = product(a.at(rows).to(dtype), b.at(cols))
        K[rows, :, cols] = block
        if a is b:
            K[cols, :, rows] = block.permute(2, 3, 0, 1)
    return K


def _factors_are_cheaper(a: Outer, b: Outer) -> bool:
    """Whether to multiply the factors at each pair of positions, or their products."""
    _, _, R, T, m = a.D.shape
    _, _, Q, S, _ = b.D.shape
    d = a.z.shape[3]
    return T * S * (d + R * Q * (m + 1)) <= R * Q * m * d


def _product_of_factors(a: Outer, b: Outer) -> Tensor:
    """``Σ_{g,t,s} <z_t, z'_s> <δ_t, δ'_s>``, in the type of ``a``."""
    G, N, R, T, _ = a.D.shape
    _, M, Q, S, _ = b.D.shape
    b = b.to(a.D.dtype)
    Z = (a.z.flatten(1, 2) @ b.z.flatten(1, 2).mT).view(G, N, 1, T, M, 1, S)
    D = (a.D.flatten(1, 3) @ b.D.flatten(1, 3).mT).view(G, N, R, T, M, Q, S)
    D *= Z
    return D[0, :, :, 0, :, :, 0] if G * T * S == 1 else D.sum((0, 3, 6))


def _product_of_entries(a: ParameterRows, b: ParameterRows) -> Tensor:
    """By entries, in the type of ``a``: those of ``b`` for some data at once."""
    A, dtype = a.dense(), a.tensors[0].dtype
    (M, Q, p) = b.size
    step = M if _is_dense(b, dtype) else max(1, AT_ONCE // max(Q * p, 1))
    blocks = [
        torch.tensordot(A, b.at(slice(m, m + step)).to(dtype).dense(), dims=([2], [2]))
        for m in range(0, M, step)
    ]
    return _concatenated(blocks, 2)


def _is_dense(part: ParameterRows, dtype: torch.dtype) -> bool:
    """Whether the entries are there, in this type."""
    return isinstance(part, Dense) and part.J.dtype == dtype


def _concatenated(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Of one nothing is copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
