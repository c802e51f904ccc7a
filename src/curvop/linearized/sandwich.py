"""``Jᵀ B J`` of one batch, taken apart: rows of a Jacobian, and what is in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Size, Tensor

from curvop.derivatives import (
    Aux,
    ChunkSize,
    Differentiable,
    Middle,
    Outputs,
    RiskDifferentiation,
)
from curvop.linearized.row_derivation import as_outputs
from curvop.linearized.rows import Dense
from curvop.operators import Blocks
from curvop.risk import Parameters

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator


class NotFactorableError(Exception):
    """The curvature has no factored form, or none that pays."""


class RowsOfAll(Protocol):
    """``J`` of ``N`` data with ``R`` rows each, over all parameters."""

    def jvp(self, V: Blocks) -> Tensor:
        """``J V``, ``[N, R, K]``."""

    def vjp(self, U: Tensor, shapes: Sequence[Size]) -> Blocks:
        """``Jᵀ U``, ``[K, *n_i]``."""


@final
@dataclass(frozen=True)
class SideBySide:
    """Dense rows over all parameters side by side: one product for all of them.

    Attributes:
        rows: ``[N, R, P]``.
    """

    rows: Dense

    def jvp(self, V: Blocks) -> Tensor:
        """``J V``."""
        return self.rows.jvp(torch.cat([v.flatten(1) for v in V], 1))

    def vjp(self, U: Tensor, shapes: Sequence[Size]) -> Blocks:
        """``Jᵀ U``."""
        flat = self.rows.vjp(U).split([shape.numel() for shape in shapes], 1)
        return [u.reshape(-1, *shape) for u, shape in zip(flat, shapes, strict=True)]


@final
@dataclass(frozen=True)
class Sandwich:
    """``Jᵀ B J`` of one batch.

    Attributes:
        J: The rows.
        B: The symmetric matrix in the middle for each datum, ``[N, R, R]``.
    """

    J: RowsOfAll
    B: Tensor

    def product(self, V: Blocks) -> Blocks:
        """``[K, *n_i] -> [K, *n_i]``."""
        with torch.no_grad():
            return self.J.vjp(self.B @ self.J.jvp(V), [v.shape[1:] for v in V])


@final
class _Taking(RiskDifferentiation):
    """What an operator would multiply: the function of one batch, and the middle.

    Handed to an operator as its way to differentiate.

    Args:
        way: For the Hessian of the loss in the prediction.

    Attributes:
        f: The function, once it is known.
        middle: ``(outputs, U) -> (B U, aux)``.
    """

    name = "rows"
    f: Differentiable | None = None
    middle: Middle

    def __init__(self, way: RiskDifferentiation) -> None:
        self._way = way

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """That of the loss in the prediction, for the middle.

        Raises:
            NotFactorableError: If the matrix itself is a Hessian.
        """
        if self.f is None:
            raise NotFactorableError("a Hessian has no rows")
        return self._way.hessian(f, at, V, chunk)

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """Take them, and multiply nothing."""
        self.f, self.middle = f, middle
        return V, ()


def taken(
    op: CurvatureLinearOperator, way: RiskDifferentiation, X: Any, y: Any, v: Blocks
) -> tuple[Differentiable, Middle]:
    """The function of one batch and the middle.

    Raises:
        NotFactorableError: If the matrix has no rows, or several blocks.
    """
    if len(op.diagonal_blocks) > 1:
        raise NotFactorableError("the matrix is block-diagonal")
    taking = _Taking(way)
    op.product_by(taking, X, y, v)
    assert taking.f is not None
    return taking.f, taking.middle


def unit_vectors(outputs: Outputs, N: int) -> Blocks:
    """Row ``r`` of each of ``N`` data at once, ``[R, *m_i]`` for the outputs."""
    R = sum(o.numel() for o in outputs) // max(N, 1)
    eye = torch.eye(R, dtype=outputs[0].dtype, device=outputs[0].device)
    return as_outputs(eye[:, None].expand(R, N, R), outputs)
