"""Rows of a Jacobian that layers give, ``Σ_t δ_t ⊗ z_t``: one pass for all of the data.

Where data are independent, a backward pass from row ``r`` of every datum at once finds the
derivatives ``δ`` of each with respect to the output of each layer. With the layer's input
``z``, summed over positions ``t``, they tell the rows, and no gradient of a weight is
computed. A product is ``V z`` and ``Σ_t u_t ⊗ z_t`` for each layer, half of what a pass
forward and back takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import final

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from curvop.layers import Call, Calls, Linear, MatrixCall
from curvop.linearized.rows import Dense, Outer, ParameterRows
from curvop.operators import Blocks


@final
@dataclass(frozen=True)
class LayerRows:
    """``Vᵀ`` of ``N`` data with ``R`` rows each, as the layers have their inputs.

    Attributes:
        calls: The calls of the layers, with their inputs ``z``.
        Ds: ``δ`` of each call, ``[N, R, m]``.
    """

    calls: tuple[Call, ...]
    Ds: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """What is kept."""
        return [*self.Ds, *(t for call in self.calls for t in call.tensors)]

    def jvp(self, V: Blocks) -> Tensor:
        """``Vᵀ M`` for ``M`` ``[K, *n_i]``: ``[N, R, K]``."""
        layers = zip(self.calls, self.Ds, strict=True)
        return reduce(add, (D @ _jvp(call, V).mT for call, D in layers))

    def vjp(self, U: Tensor, shapes: Sequence[Size]) -> Blocks:
        """``V U`` for ``U`` ``[N, R, K]``: ``[K, *n_i]``."""
        sums = [U.new_zeros(U.shape[2], *shape) for shape in shapes]
        for call, D in zip(self.calls, self.Ds, strict=True):
            _add_vjp(call, U.mT @ D, sums)
        return sums

    def by_parameter(self) -> dict[int, ParameterRows]:
        """The same for each parameter: outer products where that pays."""
        found: dict[int, list[tuple[Call, Tensor]]] = {}
        for call, D in zip(self.calls, self.Ds, strict=True):
            for i in set(call.positions):
                found.setdefault(i, []).append((call, D))
        return {i: _of_parameter(i, mine) for i, mine in found.items()}


def rows_of_layers(
    calls: Sequence[Call], outputs: Sequence[Tensor], S: Blocks, N: int
) -> LayerRows:
    """The rows ``sᵀ J``, one backward pass for each ``s`` of all data.

    Args:
        calls: Calls with the data leading.
        outputs: What came out, in the graph of the calls.
        S: Columns over the outputs, ``[R, *m_i]`` each, data leading in ``m_i``.
        N: Number of data.
    """
    columns = []
    for r in range(len(S[0])):
        ds = torch.autograd.grad(
            outputs,
            [call.edge for call in calls],  # type: ignore[arg-type]
            [s[r] for s in S],
            retain_graph=True,
            allow_unused=True,
        )
        columns.append(
            [
                outputs[0].new_zeros(call.shape) if d is None else d.detach()
                for d, call in zip(ds, calls, strict=True)
            ]
        )
    Ds = tuple(
        torch.stack([d.reshape(N, d.numel() // max(N, 1)) for d in ds], 1)
        for ds in zip(*columns, strict=True)
    )
    return LayerRows(tuple(call.without_graph() for call in calls), Ds)


def usable(noted: Calls, outputs: Sequence[Tensor], N: int) -> tuple[list[Call], list[int]]:
    """Calls with the data leading, of parameters that are used in such calls only.

    Returns:
        The calls, and the positions of parameters that are used elsewhere.
    """
    leading = {N, *(o.shape[0] for o in outputs)}
    rest = noted.elsewhere(outputs)
    calls = noted.calls
    while True:
        kept = [
            c
            for c in calls
            if c.leading in leading and not c.mixes_data and rest.isdisjoint(c.positions)
        ]
        if len(kept) == len(calls):
            return calls, sorted(rest)
        # what is not usable here makes other calls of the same parameters unusable
        known = {id(c) for c in kept}
        rest |= {i for c in calls if id(c) not in known for i in c.positions}
        calls = kept


def _of_parameter(i: int, calls: Sequence[tuple[Call, Tensor]]) -> ParameterRows:
    """The rows in the columns of parameter ``i`` from its calls."""
    N, R, _ = calls[0][1].shape
    raw = [(call, D.movedim(1, 0).reshape(R, *call.shape)) for call, D in calls]
    pairs = [
        (call.inputs(N), call.output_gradients(D, N).movedim(0, 2))
        for call, D in raw
        if isinstance(call, MatrixCall) and call.weight == i and not call.transposed
    ]
    if len(pairs) == len(raw):
        # a layer that is called several times has more positions; no memory is shared
        z, D = (torch.cat(ts, -2) for ts in zip(*pairs, strict=True))
        outer = Outer(z, D, raw[0][0].weight_shape)
        return outer if outer.pays else Dense(outer.dense().view(N, R, *outer.shape))
    terms = [call.weight_gradients(D, N) for call, D in raw if call.weight == i]
    terms += [call.bias_gradients(D, N) for call, D in raw if call.bias == i]
    return Dense(sum(terms[1:], terms[0]).movedim(0, 1))


def _jvp(call: Call, V: Blocks) -> Tensor:
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


def _add_vjp(call: Call, U: Tensor, sums: Blocks) -> None:
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
