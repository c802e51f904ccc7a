"""Exact diagonals of curvature matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curvop import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
    LinearOperator,
)
from tests.cases import curvature
from tests.cases.case import Case
from tests.cases.problem import Problem

KINDS: dict[str, type[LinearOperator]] = {
    "ggn": GGNDiagonalLinearOperator,
    "ef-term": EFDiagonalLinearOperator,
    "ef-example": EFDiagonalLinearOperator,
    "ef-output": EFDiagonalLinearOperator,
    "hessian": HessianDiagonalLinearOperator,
}
# the first goes through all forms of vectors; all others are in tests/diagonals
NAMES = ("mlp", "functional", "tied", "sequence_output", "conv", "lstm")


def operator(problem: Problem, matrix: str, **options: Any) -> Any:
    """The diagonal of the matrix of this name."""
    options = {**problem.options, **options}
    if matrix.startswith("ef"):
        options["per"] = matrix.removeprefix("ef-")
    p = problem
    return KINDS[matrix](p.model, p.loss, p.params, p.data, **options)


def cases() -> Iterator[Case]:
    """The diagonal of each matrix, for a few models."""
    for name in NAMES:
        for matrix in curvature.RISK:
            yield _case(next(m for m in curvature.MODELS if m.name == name), matrix)


def _case(model: curvature.Model, matrix: str) -> Case:
    def build(dtype: torch.dtype, **options: Any) -> LinearOperator:
        A: LinearOperator = operator(model.build(dtype), matrix, **options)
        return A

    def dense() -> Tensor:
        return curvature.dense(model.build, matrix).diagonal().diag()

    return Case(
        f"{model.name}-{matrix}-diagonal",
        KINDS[matrix],
        build,
        dense,
        ("chunk_size",),
        variant_of=None if model.name == NAMES[0] else f"{NAMES[0]}-{matrix}-diagonal",
    )
