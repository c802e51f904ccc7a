"""Random expressions of operators together with their dense values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from curvop import (
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
)
from tests.comparing import random

Pair = tuple[LinearOperator, Tensor]

N = 4
seeds = st.integers(0, 1000)
factors = st.floats(-3, 3).map(lambda c: round(c, 2))


def dense(seed: int) -> Pair:
    A = random(N, N, seed=seed)
    return DenseLinearOperator(A), A


def gram(seed: int) -> Pair:
    A = random(N, N, seed=seed)
    return DenseLinearOperator(A.T @ A, psd=True), A.T @ A


def diagonal(seed: int) -> Pair:
    d = random(N, seed=seed)
    return DiagonalLinearOperator(d), d.diag()


def low_rank(seed: int) -> Pair:
    U = random(N, 2, seed=seed)
    return LowRankLinearOperator(U), U @ U.T


def identity(_: int) -> Pair:
    eye = torch.eye(N, dtype=torch.float64)
    return IdentityLinearOperator(N, dtype=torch.float64), eye


def of_one(
    on: Callable[[LinearOperator], LinearOperator], on_dense: Callable[[Tensor], Tensor]
) -> Callable[[Pair], Pair]:
    return lambda pair: (on(pair[0]), on_dense(pair[1]))


def extend(expressions: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    """Expressions that are built from others."""
    pairs = st.tuples(expressions, expressions)
    scaled = st.tuples(expressions, factors)
    return st.one_of(
        pairs.map(lambda p: (p[0][0] + p[1][0], p[0][1] + p[1][1])),
        pairs.map(lambda p: (p[0][0] - p[1][0], p[0][1] - p[1][1])),
        pairs.map(lambda p: (p[0][0] @ p[1][0], p[0][1] @ p[1][1])),
        scaled.map(lambda p: (p[1] * p[0][0], p[1] * p[0][1])),
        expressions.map(of_one(lambda A: A.T, lambda A: A.T)),
        expressions.map(of_one(lambda A: -A, lambda A: -A)),
        expressions.map(of_one(lambda A: A.T @ A, lambda A: A.T @ A)),
        expressions.map(of_one(lambda A: A[::-1, ::-1], lambda A: A.flip(0, 1))),
        pairs.map(
            lambda p: (
                p[0][0].T @ p[1][0] @ p[0][0],
                p[0][1].T @ p[1][1] @ p[0][1],
            )
        ),
    )


leaves = st.builds(
    lambda make, seed: make(seed),
    st.sampled_from([dense, gram, diagonal, low_rank, identity]),
    seeds,
)
expressions = st.recursive(leaves, extend, max_leaves=5)
