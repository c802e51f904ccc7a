"""Operators that know nothing of networks, on block spaces with and without names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import scipy.sparse
import torch
from torch import Tensor

from curvop import (
    BlockDiagonalLinearOperator,
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
    as_operator,
    assume_psd,
    assume_symmetric,
)
from tests.cases.case import Case
from tests.cases.problem import normal

Build = Callable[[torch.dtype], LinearOperator]

BLOCKS = [(2, 2), (), (3,)]  # eight entries
FLAT = [(5,)]


def _matrix(dtype: torch.dtype, M: int = 5, N: int = 8) -> Tensor:
    return normal(dtype, M, N, seed=11)


def _symmetric(dtype: torch.dtype, N: int = 8) -> Tensor:
    A = _matrix(torch.float64, N, N)
    return (A + A.T).to(dtype)


def _gram(dtype: torch.dtype, N: int = 8) -> Tensor:
    A = _matrix(torch.float64, N - 3, N)
    return (A.T @ A).to(dtype)


def _diagonal(dtype: torch.dtype) -> list[Tensor]:
    return [normal(dtype, *shape, seed=i) for i, shape in enumerate(BLOCKS)]


def _dense(A: Tensor, **options: object) -> LinearOperator:
    return DenseLinearOperator(A, **options)


def _on_blocks(dtype: torch.dtype) -> LinearOperator:
    return _dense(_matrix(dtype), domain=BLOCKS, codomain=[(2,), (1, 3)])


def _cases() -> Iterator[tuple[str, Build, Callable[[], Tensor]]]:
    f64 = torch.float64
    A, S, G = _matrix(f64), _symmetric(f64), _gram(f64)
    d = torch.cat([b.flatten() for b in _diagonal(f64)])
    U, V, c = normal(f64, 5, 2, seed=3), normal(f64, 8, 2, seed=4), normal(f64, 2, seed=5)

    yield "dense-flat", lambda t: _dense(_matrix(t)), lambda: A
    yield "dense-blocks", _on_blocks, lambda: A
    yield (
        "dense-symmetric",
        lambda t: _dense(_symmetric(t), domain=BLOCKS, codomain=BLOCKS),
        lambda: S,
    )
    yield (
        "dense-psd",
        lambda t: _dense(_gram(t), domain=BLOCKS, codomain=BLOCKS, psd=True),
        lambda: G,
    )
    yield (
        "identity-flat",
        lambda t: IdentityLinearOperator(3, dtype=t),
        lambda: torch.eye(3, dtype=f64),
    )
    yield (
        "identity-named",
        lambda t: IdentityLinearOperator(BLOCKS, dtype=t, names=["a", "b", "c"]),
        lambda: torch.eye(8, dtype=f64),
    )
    yield (
        "identity-like",
        lambda t: IdentityLinearOperator.like(_on_blocks(t)),
        lambda: torch.eye(8, dtype=f64),
    )
    yield (
        "diagonal-named",
        lambda t: DiagonalLinearOperator(_diagonal(t), names=["a", "b", "c"]),
        lambda: d.diag(),
    )
    yield (
        "diagonal-psd",
        lambda t: DiagonalLinearOperator(normal(t, 4).exp()),
        lambda: normal(f64, 4).exp().diag(),
    )
    yield (
        "block-diagonal",
        lambda t: BlockDiagonalLinearOperator([_on_blocks(t), _dense(_symmetric(t, 2))]),
        lambda: torch.block_diag(A, _symmetric(f64, 2)),
    )
    yield (
        "block-diagonal-psd",
        lambda t: BlockDiagonalLinearOperator([_dense(_gram(t, 4), psd=True)] * 2),
        lambda: torch.block_diag(_gram(f64, 4), _gram(f64, 4)),
    )
    yield (
        "low-rank",
        lambda t: LowRankLinearOperator(U.to(t), V.to(t), c.to(t)),
        lambda: U @ c.diag() @ V.T,
    )
    yield "low-rank-psd", lambda t: LowRankLinearOperator(V.to(t)), lambda: V @ V.T
    yield (
        "low-rank-indefinite",
        lambda t: LowRankLinearOperator(V.to(t), coefficients=c.to(t)),
        lambda: V @ c.diag() @ V.T,
    )
    yield "transposed", lambda t: _on_blocks(t).T, lambda: A.T
    yield "sum", lambda t: _on_blocks(t) + _matrix(t), lambda: 2 * A
    yield (
        "difference",
        lambda t: _on_blocks(t) - LowRankLinearOperator(U.to(t), V.to(t)),
        lambda: A - U @ V.T,
    )
    yield "scaled", lambda t: -2 * _on_blocks(t) / 3, lambda: -2 / 3 * A
    yield (
        "damped",
        lambda t: _damped(_dense(_gram(t), domain=BLOCKS, codomain=BLOCKS, psd=True)),
        lambda: G + 0.5 * torch.eye(8, dtype=f64),
    )
    yield (
        "product",
        lambda t: _on_blocks(t) @ DiagonalLinearOperator(_diagonal(t)),
        lambda: A @ d.diag(),
    )
    yield "gram", lambda t: _gramian(_on_blocks(t)), lambda: A.T @ A
    yield "sandwich", lambda t: _sandwich(_on_blocks(t), t), lambda: A @ S @ A.T
    yield (
        "submatrix",
        lambda t: _on_blocks(t)[1:4, [7, 0, -3]],
        lambda: A[1:4][:, [7, 0, 5]],
    )
    yield (
        "submatrix-principal",
        lambda t: _dense(_gram(t), psd=True)[::2, ::2],
        lambda: G[::2, ::2],
    )
    yield "numpy", lambda t: as_operator(_matrix(t).numpy()), lambda: A
    yield (
        "scipy-sparse",
        lambda t: as_operator(scipy.sparse.csr_array(_matrix(t).numpy())),
        lambda: A,
    )
    yield "scipy-and-back", lambda t: as_operator(_on_blocks(t).to_scipy()), lambda: A
    yield (
        "assumed-symmetric",
        lambda t: assume_symmetric(scipy.sparse.csr_array(_symmetric(t).numpy())),
        lambda: S,
    )
    yield (
        "assumed-psd",
        lambda t: assume_psd(scipy.sparse.csr_array(_gram(t).numpy())),
        lambda: G,
    )


def _damped(A: LinearOperator) -> LinearOperator:
    return A + 0.5 * IdentityLinearOperator.like(A)


def _gramian(A: LinearOperator) -> LinearOperator:
    return A.T @ A


def _sandwich(A: LinearOperator, dtype: torch.dtype) -> LinearOperator:
    S = _dense(_symmetric(dtype), domain=BLOCKS, codomain=BLOCKS)
    return A @ S @ A.T


def cases() -> Iterator[Case]:
    """Each operator once."""
    for name, build, dense in _cases():
        kind = type(build(torch.float64))
        yield Case(f"structured-{name}", kind, functools.partial(_plain, build), dense)


def _plain(build: Build, dtype: torch.dtype) -> LinearOperator:
    return build(dtype)
