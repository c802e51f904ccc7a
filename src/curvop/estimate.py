"""Estimates with standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from torch import Tensor
from typing_extensions import TypeVar

from curvop.operators import Space

Value = TypeVar("Value", float, Tensor, default=float)


@dataclass(frozen=True)
class Estimate(Generic[Value]):
    """An estimate with its standard error.

    Attributes:
        value: The estimate; a scalar tensor with a graph if that was asked for.
        standard_error: Standard deviation of ``value`` over repetitions of the
            estimation, itself estimated from the samples; ``nan`` from one sample. Some
            estimators widen it for few samples: they say so.
        num_matvecs: Number of products with the matrix that it took.

    >>> float(Estimate(2.0, 0.1, 10))
    2.0
    """

    value: Value
    standard_error: float
    num_matvecs: int

    def __float__(self) -> float:
        """The value."""
        return self.value.item() if isinstance(self.value, Tensor) else self.value

    def __str__(self) -> str:
        """Value and error, as in ``2.00 ± 0.10``."""
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """The estimated entries of a diagonal, each with its standard error.

    Attributes:
        value: The entries, ``[N]``.
        standard_error: That of each, ``[N]``; ``nan`` from one sample.
        num_matvecs: Number of products with the matrix that it took.
        space: Shapes and names of the blocks of the matrix.
    """

    value: Tensor  # [N]
    standard_error: Tensor  # [N]
    num_matvecs: int
    space: Space

    def blocks(self) -> dict[str | int, Tensor]:
        """The entries in the shapes of the blocks, by name, or else by position."""
        return self._in_blocks(self.value)

    def block_errors(self) -> dict[str | int, Tensor]:
        """The standard errors in the shapes of the blocks, as :meth:`blocks`."""
        return self._in_blocks(self.standard_error)

    def _in_blocks(self, d: Tensor) -> dict[str | int, Tensor]:
        parts = zip(d.split(self.space.sizes), self.space.shapes, strict=True)
        return {
            name: part.reshape(shape)
            for name, (part, shape) in zip(block_keys(self.space), parts, strict=True)
        }


def block_keys(space: Space) -> tuple[str | int, ...]:
    """Names of the blocks, or else their positions."""
    return space.names or tuple(range(len(space.shapes)))
