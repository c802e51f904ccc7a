"""Inverses by iterative solvers, and preconditioners, of small dense matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from curvop import (
    CGInverseLinearOperator,
    DenseLinearOperator,
    LinearOperator,
    LSMRInverseLinearOperator,
    MINRESInverseLinearOperator,
    NeumannInverseLinearOperator,
    jacobi_preconditioner,
    nystrom_preconditioner,
)
from tests.cases.case import Case
from tests.cases.problem import normal

Build = Callable[[torch.dtype], LinearOperator]

BLOCKS = [(2, 2), (), (3,)]  # eight entries
SPECTRUM = [1.0, 1.3, 1.7, 2.0, 2.2, 2.5, 2.8, 3.0]
SIGNS = [1, -1, 1, 1, -1, 1, 1, -1]
f64 = torch.float64


def _basis(N: int = 8, seed: int = 21) -> Tensor:
    return torch.linalg.qr(normal(f64, N, N, seed=seed))[0]


def _symmetric(values: Tensor) -> Tensor:
    Q = _basis(len(values))
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def _positive() -> Tensor:
    return _symmetric(torch.tensor(SPECTRUM, dtype=f64))


def _indefinite() -> Tensor:
    return _symmetric(torch.tensor(SPECTRUM, dtype=f64) * torch.tensor(SIGNS))


def _rectangular(rank: int = 5) -> Tensor:
    U, V = _basis(5, 22), _basis()
    values = torch.tensor(SPECTRUM[:rank], dtype=f64)
    return (U[:, :rank] * values) @ V[:, :rank].T


def _on_blocks(A: Tensor, dtype: torch.dtype, *, psd: bool = False) -> LinearOperator:
    return DenseLinearOperator(A.to(dtype), domain=BLOCKS, codomain=BLOCKS, psd=psd)


def _wide(dtype: torch.dtype, rank: int = 5) -> LinearOperator:
    codomain = [(2,), (1, 3)]
    return DenseLinearOperator(
        _rectangular(rank).to(dtype), domain=BLOCKS, codomain=codomain
    )


def _tight(dtype: torch.dtype) -> dict[str, float]:
    """As precise as rounding lets the solvers be."""
    return {"rtol": 1e-14 if dtype == f64 else 1e-6}


def _damped_pinv(A: Tensor, damp: float) -> Tensor:
    eye = torch.eye(A.shape[1], dtype=f64)
    return torch.linalg.solve(A.T @ A + damp**2 * eye, A.T)


def _nystrom(A: Tensor, rank: int, damping: float) -> Tensor:
    """The preconditioner by its definition, from the same random matrix."""
    N = len(A)
    generator = Generator().manual_seed(3)
    draw = torch.randn(rank, N, generator=generator, dtype=torch.float32).double()
    Omega = torch.linalg.qr(draw.T)[0]
    Y = A @ Omega
    values, U = torch.linalg.eigh(Y @ torch.linalg.solve(Omega.T @ Y, Y.T))
    values, U = values[-rank:], U[:, -rank:]
    inverse = (values[0] + damping) / (values + damping)
    return (U * inverse) @ U.T + torch.eye(N, dtype=f64) - U @ U.T


def _cases() -> Iterator[tuple[str, Build, Callable[[], Tensor]]]:
    P, S, R = _positive(), _indefinite(), _rectangular()
    eye = torch.eye(8, dtype=f64)

    yield (
        "cg",
        lambda t: CGInverseLinearOperator(_on_blocks(P, t, psd=True), **_tight(t)),
        lambda: torch.linalg.inv(P),
    )
    yield (
        "cg-preconditioned",
        lambda t: CGInverseLinearOperator(
            _on_blocks(P, t, psd=True),
            M=jacobi_preconditioner(P.to(t), P.to(t).diagonal()),
            **_tight(t),
        ),
        lambda: torch.linalg.inv(P),
    )
    yield (
        "minres",
        lambda t: MINRESInverseLinearOperator(_on_blocks(S, t), **_tight(t)),
        lambda: torch.linalg.inv(S),
    )
    yield (
        "minres-damped",
        lambda t: MINRESInverseLinearOperator(
            _on_blocks(P, t, psd=True), shift=-0.5, **_tight(t)
        ),
        lambda: torch.linalg.inv(P + 0.5 * eye),
    )
    yield (
        "lsmr-wide",
        lambda t: LSMRInverseLinearOperator(_wide(t), **_tight(t)),
        lambda: torch.linalg.pinv(R),
    )
    yield (
        "lsmr-tall",
        lambda t: LSMRInverseLinearOperator(_wide(t).T, **_tight(t)),
        lambda: torch.linalg.pinv(R.T),
    )
    yield (
        "lsmr-deficient",
        lambda t: LSMRInverseLinearOperator(_wide(t, 3), **_tight(t)),
        lambda: torch.linalg.pinv(_rectangular(3), rtol=1e-10),
    )
    yield (
        "lsmr-damped",
        lambda t: LSMRInverseLinearOperator(_wide(t), damp=0.5, **_tight(t)),
        lambda: _damped_pinv(R, 0.5),
    )
    yield (
        "lsmr-symmetric",
        lambda t: LSMRInverseLinearOperator(_on_blocks(S, t), **_tight(t)),
        lambda: torch.linalg.inv(S),
    )
    yield (
        "neumann",
        lambda t: NeumannInverseLinearOperator(
            _on_blocks(P, t, psd=True), num_terms=50, scale=0.5, rtol=1e-6
        ),
        lambda: torch.linalg.inv(P),
    )
    yield (
        "neumann-unsymmetric",
        lambda t: NeumannInverseLinearOperator(
            _on_blocks(P + torch.triu(S, 1) / 8, t), num_terms=80, scale=0.4
        ),
        lambda: torch.linalg.inv(P + torch.triu(S, 1) / 8),
    )
    yield (
        "jacobi",
        lambda t: jacobi_preconditioner(_on_blocks(P, t), P.to(t).diagonal(), damping=0.5),
        lambda: (1 / (P.diagonal() + 0.5)).diag(),
    )
    yield (
        "nystrom",
        lambda t: nystrom_preconditioner(
            _on_blocks(P, t, psd=True),
            3,
            damping=0.5,
            generator=Generator().manual_seed(3),
        ),
        lambda: _nystrom(P, 3, 0.5),
    )


def cases() -> Iterator[Case]:
    """Each operator once."""
    for name, build, dense in _cases():
        kind = type(build(f64))
        yield Case(f"inverse-{name}", kind, functools.partial(_plain, build), dense)


def _plain(build: Build, dtype: torch.dtype) -> LinearOperator:
    return build(dtype)
