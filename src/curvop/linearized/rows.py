"""GGN and empirical Fisher from the dense rows of the Jacobian, one or few per datum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from curvop.derivatives import Aux, ChunkSize, Differentiable, Middle, hessian_map
from curvop.layers import Calls
from curvop.linearized.budget import Budget, Kept
from curvop.linearized.factored import STREAM, NotFactorableError
from curvop.operators import Blocks
from curvop.risk import Batch, Parameters, nested

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator

# Rows are kept up to this many bytes unless a budget says otherwise.
ROWS_BYTES = 2**30


@dataclass(frozen=True)
class Rows:
    """``Jᵀ B J`` of one batch.

    Attributes:
        J: The rows, ``[N, R, P]`` for ``R`` rows per datum.
        B: The matrix in the middle for each datum, ``[N, R, R]``.
    """

    J: Tensor
    B: Tensor

    def product(self, V: Blocks) -> Blocks:
        """``[K, *n_i] -> [K, *n_i]``."""
        with torch.no_grad():
            N, R, P = self.J.shape
            rows = self.J.view(N * R, P)
            JV = rows @ torch.cat([v.flatten(1) for v in V], 1).T  # [N·R, K]
            U = (self.B @ JV.view(N, R, -1)).view(N * R, -1)
            flat = (U.T @ rows).split([v[0].numel() for v in V], 1)
            return [u.reshape(v.shape) for u, v in zip(flat, V, strict=True)]


def rows(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept:
    """Keep the rows of the Jacobian, where multiplying them is cheaper than a pass.

    Raises:
        NotFactorableError: If it is not, or the rows take too much memory.
    """
    if len(op.diagonal_blocks) > 1:
        raise NotFactorableError("the matrix is block-diagonal")
    limit = ROWS_BYTES if budget.memory_budget is None else budget.memory_budget
    pieces, total = [], 0
    for X, y in batches:
        kept = _rows(op, X, y, v, limit - total)
        pieces.append(kept.product)
        total += kept.J.nbytes + kept.B.nbytes
    return Kept(pieces, total)


def _rows(op: CurvatureLinearOperator, X: Any, y: Any, V: Blocks, limit: int) -> Rows:
    """The rows of one batch, its data taken one by one.

    Args:
        op: A GGN or empirical Fisher with one block.
        X: Inputs.
        y: Targets.
        V: A column ``[1, *n_i]``.
        limit: Bytes that the rows may take.

    Raises:
        NotFactorableError: If the data cannot be told apart, the rows take too much
            memory, or a pass through the network is cheaper.
    """
    measure = _Measure()
    op.product_by(measure, X, y, V)
    data = list(nested.tensors((X, y)))
    N, P = op.risk.data.batch_size(X, y), sum(v.numel() for v in V)
    if measure.rows % max(N, 1) or any(t.shape[:1] != (N,) for t in data):
        raise NotFactorableError("data and rows do not belong together")
    if 2 * STREAM * measure.rows * P >= N * measure.multiplications:
        raise NotFactorableError("a pass through the network is cheaper")
    if measure.rows * P * V[0].itemsize > limit:
        raise NotFactorableError("the rows take too much memory")

    def of_datum(*datum: Tensor) -> list[Tensor]:
        parts = iter(datum)
        inputs, targets = nested.map_tensors(lambda _: next(parts)[None], (X, y))
        return op.product_by(_RowsOfOne(), inputs, targets, V)

    with torch.no_grad():
        *J, B = vmap(of_datum)(*data)
    return Rows(torch.cat([j.flatten(2) for j in J], 2), B)


class _Measure:
    """Counts rows, and the multiplications of a product forward and back."""

    name = "measured"

    def __init__(self) -> None:
        self.rows = 0
        self.multiplications = 0

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """Nothing to measure.

        Raises:
            NotFactorableError: A Hessian has no rows.
        """
        raise NotFactorableError("a Hessian has no rows")

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """Forward only."""
        with torch.enable_grad(), at.leaves() as params, Calls(params) as calls:
            outputs, _ = f(params)
        self.rows = sum(o.numel() for o in outputs)
        self.multiplications = calls.multiplications()
        return V, ()


class _RowsOfOne:
    """The rows of one datum and the matrix in the middle, instead of a product."""

    name = "rows"

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """That of the loss in the prediction, for the middle."""
        multiply, aux = hessian_map(f, at.tensors)
        return list(vmap(multiply)(*V)), aux

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``[R, *n_i]`` for each parameter, and ``[R, R]``."""
        outputs, pull = vjp(lambda *p: f(p)[0], *at.tensors)  # type: ignore[misc]
        rows = _identity(outputs)
        J = vmap(pull)(tuple(rows))
        W, aux = middle(outputs, rows)
        return [*J, torch.cat([w.flatten(1) for w in W], 1)], aux


def _identity(outputs: Sequence[Tensor]) -> Blocks:
    """The unit vectors over the outputs, ``[R, *m_i]``."""
    sizes = [o.numel() for o in outputs]
    first = outputs[0]
    eye = torch.eye(sum(sizes), dtype=first.dtype, device=first.device).split(sizes, 1)
    return [e.reshape(-1, *o.shape) for e, o in zip(eye, outputs, strict=True)]
