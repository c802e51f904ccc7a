"""A case: an operator and its dense truth."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop import LinearOperator


@dataclass(frozen=True)
class Case:
    """An operator and the dense matrix that it must equal.

    Attributes:
        name: Unique.
        kind: Class of the operator.
        build: ``(dtype, **options) -> operator``; the options are the operator's own.
        dense: ``() ->`` the matrix in double precision.
        options: Names of the options of the operator that the contract tries.
        variant_of: Name of the case that has the same operator computed in another way,
            and goes through all forms of vectors for both; this one only through what
            depends on numbers.
    """

    name: str
    kind: type[LinearOperator]
    build: Callable[..., LinearOperator]
    dense: Callable[[], Tensor]
    options: tuple[str, ...] = ()
    variant_of: str | None = None

    def __str__(self) -> str:
        return self.name

    def operator(self, **options: Any) -> LinearOperator:
        """The operator in double precision; the plain one is built once."""
        if options:
            return self.build(torch.float64, **options)
        return _operator(self)

    @property
    def unchecked(self) -> dict[str, bool]:
        """Options that save the determinism check where it is not what is tested."""
        return {"check_deterministic": False} if self.options else {}

    def truth(self) -> Tensor:
        """The dense matrix that must come out, computed once."""
        return _truth(self)

    def as_dense(self) -> Tensor:
        """The dense matrix that the operator makes, computed once."""
        return _as_dense(self)


@functools.cache
def _operator(case: Case) -> LinearOperator:
    return case.build(torch.float64)


@functools.cache
def _truth(case: Case) -> Tensor:
    return case.dense()


@functools.cache
def _as_dense(case: Case) -> Tensor:
    return case.operator().to_dense()
