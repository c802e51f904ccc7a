"""GGN and empirical Fisher in factored form: no pass through the network at all.

Where data are independent and a parameter is the weight of linear layers, a row of the
Jacobian of datum ``n`` is ``Σ_t δ_t ⊗ z_t``: the layer's input ``z`` and the derivative
``δ`` of the row with respect to its output, summed over positions ``t``. A product is then
``V z`` and ``Σ_t u_t ⊗ z_t`` for each layer, half of what a pass forward and back takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from curvop.derivatives import (
    Aux,
    ChunkSize,
    Differentiable,
    DoubleBackward,
    Middle,
    Outputs,
    at,
    chunks,
    gather,
)
from curvop.layers import Call, Calls, Linear
from curvop.linearized.budget import BatchProduct, Budget, Kept, held, merged, storages
from curvop.operators import Blocks
from curvop.risk import Batch, Parameters

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator

# What streams from memory costs so many times what a matrix product does, per number.
STREAM = 16


class NotFactorableError(Exception):
    """The curvature has no factored form, or none that pays."""


@dataclass(frozen=True)
class Factors:
    """``Jᵀ B J`` of one batch, with the rows ``Σ_t δ_t ⊗ z_t`` of ``J``.

    Attributes:
        calls: The calls of the layers, with their inputs ``z``.
        Ds: ``δ`` of each call, ``[N, R, m]`` for ``R`` rows per datum.
        B: The matrix in the middle for each datum, ``[N, R, R]``.
    """

    calls: tuple[Call, ...]
    Ds: tuple[Tensor, ...]
    B: Tensor

    def product(self, V: Blocks) -> Blocks:
        """``[K, *n_i] -> [K, *n_i]``."""
        with torch.no_grad():
            sums = [torch.zeros(v.shape, dtype=v.dtype, device=v.device) for v in V]
            layers = list(zip(self.calls, self.Ds, strict=True))
            JV = reduce(add, (_push(call, V) @ D.mT for call, D in layers))
            BJV = JV @ self.B  # [N, K, R]
            for call, D in layers:
                _pull(call, BJV @ D, sums)
            return sums

    def tensors(self) -> list[Tensor]:
        """What is kept."""
        return [*self.Ds, self.B, *(t for call in self.calls for t in call.tensors)]


def factored(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept:
    """Keep the factors of each layer, where they take fewer multiplications.

    Raises:
        NotFactorableError: If there are none, or they take more or too much memory.
    """
    if len(op.diagonal_blocks) > 1:
        raise NotFactorableError("the matrix is block-diagonal")
    pieces: list[BatchProduct] = []
    seen, total = held(op.risk, batches), 0
    for X, y in merged(op.risk, batches, budget.batch_size):
        way = Factoring()
        op.product_by(way, X, y, v)
        assert way.factors is not None
        new = storages(way.factors.tensors(), besides=seen)
        seen |= new.keys()
        total += sum(new.values())
        if not budget.allows(total):
            raise NotFactorableError("the factors take too much memory")
        pieces.append(_in_chunks(way.factors.product, op.chunk_size))
    return Kept(pieces, total)


def _in_chunks(product: BatchProduct, chunk: ChunkSize) -> BatchProduct:
    def piece(V: Blocks) -> Blocks:
        K = V[0].shape[0]
        return gather((product(at(V, c)) for c in chunks(K, chunk)), K)

    return piece


class Factoring:
    """Finds the factors of one batch: handed to an operator as its way to differentiate.

    The factors are what is wanted; what the operator gets is their product.
    """

    name = "factored"

    def __init__(self) -> None:
        self.factors: Factors | None = None

    def hessian(
        self, f: Differentiable, at_: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """That of the loss in the prediction, for the middle."""
        return DoubleBackward().hessian(f, at_, V, chunk)

    def sandwich(
        self,
        f: Differentiable,
        at_: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """Find the factors.

        Raises:
            NotFactorableError: If there are none, or a pass through the network is cheaper.
        """
        with torch.enable_grad(), at_.leaves() as params:
            with Calls(params, every=True) as noted:
                outputs, on_the_way = f(params)
            N, R = _check(noted, outputs)
            (output,) = outputs
            # row r of every datum at once: data are independent
            rows = torch.eye(R, dtype=output.dtype, device=output.device)
            rows = rows.view(R, 1, *output.shape[1:]).expand(R, *output.shape)
            edges = noted.edges()
            deltas = [
                torch.autograd.grad(output, edges, e, retain_graph=True) for e in rows
            ]
        Ds = tuple(
            torch.stack([d.flatten(1) for d in ds], 1) for ds in zip(*deltas, strict=True)
        )
        (E,), aux = middle((output.detach(),), [rows])
        B = E.reshape(R, N, R).movedim(1, 0)  # symmetric
        calls = tuple(call.without_graph() for call in noted.calls)
        self.factors = Factors(calls, Ds, B.contiguous())
        return self.factors.product(V), (*on_the_way, *aux)


def _check(noted: Calls, outputs: Outputs) -> tuple[int, int]:
    """Number of data and of rows per datum.

    Raises:
        NotFactorableError: If the model is not made of linear layers over independent data
            (as far as shapes tell: values are compared later), or has too many rows.
    """
    used = {i for call in noted.calls for i in (call.weight, call.bias)}
    if used - {None} != set(range(len(noted.params))):
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
    return N, R


def _push(call: Call, V: Blocks) -> Tensor:
    """``V z + c`` for ``K`` columns, ``[N, K, m]``."""
    W = None if call.weight is None else V[call.weight]
    c = None if call.bias is None else V[call.bias]
    K, N = len(V[0]), call.shape[0]
    if isinstance(call, Linear) and W is not None:  # one product for all columns
        out: Tensor = F.linear(call.z, W.flatten(0, 1), None if c is None else c.flatten())
        out = out.unflatten(-1, (K, W.shape[1])).movedim(-2, 1)
        return out.reshape(N, K, -1)  # [N, K, *t, o]
    columns = [call.jvp(*(None if t is None else t[k] for t in (W, c))) for k in range(K)]
    return torch.stack(columns, 1).flatten(2)


def _pull(call: Call, U: Tensor, sums: Blocks) -> None:
    """Add ``Σ u ⊗ z`` for ``u`` ``[N, K, m]`` to the weight, ``Σ u`` to the bias."""
    U = U.unflatten(2, call.shape[1:])
    if isinstance(call, Linear) and call.weight is not None:
        z = call.z.reshape(-1, call.z.shape[-1])
        columns = U.movedim(1, -2).flatten(-2).flatten(0, -2)  # [N·t, K·o]
        sums[call.weight].view(-1, z.shape[1]).addmm_(columns.T, z)
    elif call.weight is not None:
        for k, total in enumerate(sums[call.weight]):
            total += call.weight_gradient(U[:, k])
    if call.bias is not None:
        sums[call.bias] += call.bias_gradients(U.movedim(1, 0), len(U)).sum(1)
