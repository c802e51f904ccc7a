"""GGN and empirical Fisher as ``Jᵀ B J`` with the rows of ``J`` kept: no pass at all.

In the form "rows" they are dense, in the form "factored" as the layers give them, which
takes half of the multiplications of a pass forward and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from curvop.derivatives import (
    ChunkSize,
    DoubleBackward,
    Outputs,
    TorchFunc,
    chunks,
    gather,
    some_columns,
)
from curvop.layers import Calls
from curvop.linearized.budget import (
    BatchProduct,
    Budget,
    Kept,
    merged,
    new_storages,
    storages_in_use,
)
from curvop.linearized.layer_rows import LayerRows, rows_of_layers
from curvop.linearized.rows import Dense
from curvop.linearized.sandwich import (
    NotFactorableError,
    Sandwich,
    SideBySide,
    taken,
    unit_vectors,
)
from curvop.operators import Blocks
from curvop.risk import Batch, nested

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator

# Rows are kept up to this many bytes unless a budget says otherwise.
ROWS_BYTES = 2**30
# What streams from memory costs so many times what a matrix product does, per number.
STREAM = 16


# ------------------------------------------------------------------------ dense rows


def rows(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept[BatchProduct]:
    """Keep the rows of the Jacobian, where multiplying them is cheaper than a pass.

    Raises:
        NotFactorableError: If it is not, or the rows take too much memory.
    """
    limit = ROWS_BYTES if budget.memory_budget is None else budget.memory_budget
    pieces, total = [], 0
    for X, y in batches:
        J, B = _dense(op, X, y, v, limit - total)
        pieces.append(Sandwich(SideBySide(Dense(J)), B).product)
        total += J.nbytes + B.nbytes
    return Kept(pieces, total)


def _dense(
    op: CurvatureLinearOperator, X: Any, y: Any, v: Blocks, limit: int
) -> tuple[Tensor, Tensor]:
    """The rows of one batch, its data taken one by one, and the middle.

    Raises:
        NotFactorableError: If the data cannot be told apart, the rows take too much
            memory, or a pass through the network is cheaper.
    """
    f, _ = taken(op, DoubleBackward(), X, y, v)
    leaves = op.risk.parameters.leaves()
    with torch.enable_grad(), leaves as params, Calls(params) as noted:
        R = sum(o.numel() for o in f(params)[0])
    data = list(nested.tensors((X, y)))
    N, P = op.risk.data.batch_size(X, y), op.shape[0]
    if R % max(N, 1) or any(t.shape[:1] != (N,) for t in data):
        raise NotFactorableError("data and rows do not belong together")
    if N * noted.multiplications() <= 2 * STREAM * R * P:
        raise NotFactorableError("a pass through the network is cheaper")
    if R * P * v[0].itemsize > limit:
        raise NotFactorableError("the rows take too much memory")
    way = TorchFunc(is_vectorised=True)

    def of_datum(*datum: Tensor) -> tuple[Blocks, Tensor]:
        parts = iter(datum)
        x, target = nested.map_tensors(lambda _: next(parts)[None], (X, y))
        f, middle = taken(op, way, x, target, v)
        B: list[Tensor] = []

        def rows(outputs: Outputs) -> Blocks:
            units = unit_vectors(outputs, 1)
            B.append(torch.cat([w.flatten(1) for w in middle(outputs, units)[0]], 1))
            return units

        J = way.vjp(f, op.risk.parameters, rows, None)
        return J, B[0]

    with torch.no_grad():
        J, B = vmap(of_datum)(*data)
    return torch.cat([j.flatten(2) for j in J], 2), B


# -------------------------------------------------------------------- rows of layers


def factored(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept[BatchProduct]:
    """Keep the rows as the layers give them, where they take fewer multiplications.

    Raises:
        NotFactorableError: If they do not, or take too much memory.
    """
    pieces: list[BatchProduct] = []
    seen, total = storages_in_use(op.risk, batches), 0
    for X, y in merged(op.risk, batches, budget.batch_size):
        J, B = _of_layers(op, X, y, v)
        new = new_storages([*J.tensors, B], besides=seen)
        seen |= new.keys()
        total += sum(new.values())
        if not budget.allows(total):
            raise NotFactorableError("the factors take too much memory")
        pieces.append(_in_chunks(Sandwich(J, B).product, op.chunk_size))
    return Kept(pieces, total)


def _in_chunks(product: BatchProduct, chunk: ChunkSize) -> BatchProduct:
    def piece(V: Blocks) -> Blocks:
        K = V[0].shape[0]
        return gather((product(some_columns(V, c)) for c in chunks(K, chunk)), K)

    return piece


def _of_layers(
    op: CurvatureLinearOperator, X: Any, y: Any, v: Blocks
) -> tuple[LayerRows, Tensor]:
    """The rows of one batch, all data at once, and the middle.

    Raises:
        NotFactorableError: If there are none, or a pass through the network is cheaper.
    """
    f, middle = taken(op, DoubleBackward(), X, y, v)
    with torch.enable_grad(), op.risk.parameters.leaves() as params:
        with Calls(params, every=True) as noted:
            outputs, _ = f(params)
        N = _check(noted, outputs)
        units = unit_vectors(outputs, N)
        J = rows_of_layers(noted.calls, outputs, units, N)
        (E,), _ = middle((outputs[0].detach(),), units)
    B = E.reshape(len(E), N, -1).movedim(1, 0)  # symmetric
    return J, B.contiguous()


def _check(noted: Calls, outputs: Outputs) -> int:
    """Number of data.

    Raises:
        NotFactorableError: If the model is not made of layers over independent data (as
            far as shapes tell: values are compared later), or has too many rows.
    """
    used = {i for call in noted.calls for i in call.positions}
    if used != set(range(len(noted.params))):
        raise NotFactorableError("some parameters do not belong to linear layers")
    if len({p.dtype for p in noted.params}) > 1:
        raise NotFactorableError("the parameters have several types")
    if len(outputs) != 1 or outputs[0].ndim == 0 or not outputs[0].requires_grad:
        raise NotFactorableError("the rows are not one tensor with the data leading")
    N = outputs[0].shape[0]
    if any(call.leading != N or call.mixes_data for call in noted.calls):
        raise NotFactorableError("the layers do not have the data leading")
    R = outputs[0].numel() // max(N, 1)
    factored = sum(2 * c.multiplications + 2 * STREAM * R * c.size for c in noted.calls)
    if factored >= noted.multiplications():
        raise NotFactorableError("a pass through the network is cheaper")
    return N
