"""The rows of one batch, from its model: by layers, by vmap over the data, by passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.func import vmap

from curvop.autograd import graph_vjp
from curvop.derivatives import Aux, Outputs, TorchFunc, chunks
from curvop.layers import Calls
from curvop.linearized.layer_rows import rows_of_layers, usable
from curvop.linearized.rows import Dense, ParameterRows, Rows
from curvop.operators import Blocks
from curvop.risk import Parameters, constant, nested

# Rows that are derived at once: each takes the memory of a datum's activations.
ROWS_AT_ONCE = 512


@final
@dataclass(frozen=True)
class RowsOfBatch:
    """What the rows ``sᵀ J`` of one batch are derived from.

    Attributes:
        at: The parameters, and the model.
        X: Inputs.
        S: Columns over the outputs of the model, ``[R, *m_i]``, data leading in ``m_i``.
        N: Number of data.
    """

    at: Parameters
    X: Any
    S: Blocks
    N: int

    @property
    def R(self) -> int:
        """Rows of each datum."""
        return self.S[0].shape[0]

    @property
    def flat(self) -> Tensor:
        """``S`` datum by datum, ``[R, N, m]``."""
        parts = [s.reshape(self.R, self.N, -1) for s in self.S]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def some(self, data: range) -> RowsOfBatch:
        """Some of the data.

        Raises:
            ValueError: If they cannot be told apart.
        """
        if len(data) == self.N:
            return self
        if any(t.shape[:1] != (self.N,) for t in nested.tensors(self.X)):
            raise ValueError("the inputs do not have the data leading")
        X = nested.map_tensors(lambda t: t[data.start : data.stop], self.X)
        rows = [s.shape[1] // self.N for s in self.S]
        S = [
            s[:, data.start * q : data.stop * q] for s, q in zip(self.S, rows, strict=True)
        ]
        return RowsOfBatch(self.at, X, S, len(data))


Derive = Callable[[RowsOfBatch, range], Rows]


def by_layers(batch: RowsOfBatch, data: range) -> Rows:
    """Layers by outer products, what remains by vmap over the data."""
    batch = batch.some(data)
    return _by_layers(batch, lambda rest: _dense_by_vmap(batch, rest))


def by_layers_and_passes(batch: RowsOfBatch, data: range) -> Rows:
    """Layers by outer products, what remains by passes."""
    batch = batch.some(data)
    return _by_layers(batch, lambda rest: _dense_by_passes(batch, rest, range(batch.N)))


def by_passes(batch: RowsOfBatch, data: range) -> Rows:
    """All parameters by passes: the only way that is right where data are coupled."""
    every = range(len(batch.at.tensors))
    parts = tuple(map(Dense, _dense_by_passes(batch, every, data)))
    return Rows(parts, len(data), batch.R)


def ways(at: Parameters) -> tuple[Derive, ...]:
    """What to try, the cheapest first."""
    if at.functional:
        return (by_layers, by_layers_and_passes, by_passes)
    return (by_layers_and_passes, by_passes)


def _by_layers(batch: RowsOfBatch, others: Callable[[Sequence[int]], Blocks]) -> Rows:
    """Layers by outer products; ``others`` gives dense rows of what is used elsewhere."""
    parts: dict[int, ParameterRows] = {}
    rest: list[int] = []
    with torch.enable_grad(), batch.at.leaves() as params:
        with Calls(params, every=True) as noted:
            found = nested.differentiable(batch.at.model(params, batch.X))
        outputs = [o for o in found if o.requires_grad]
        S = [s for s, o in zip(batch.S, found, strict=True) if o.requires_grad]
        if outputs:
            calls, rest = usable(noted, outputs, batch.N)
            if calls:
                parts = rows_of_layers(calls, outputs, S, batch.N).by_parameter()
    if rest:
        parts |= {i: Dense(J) for i, J in zip(rest, others(rest), strict=True)}
    every = range(len(batch.at.tensors))
    return Rows(tuple(parts.get(i) for i in every), batch.N, batch.R)


def _dense_by_vmap(batch: RowsOfBatch, which: Sequence[int]) -> Blocks:
    step = max(1, ROWS_AT_ONCE // max(batch.R, 1))
    some = list(rows_by_vmap(batch.at, batch.X, batch.flat, which, step))
    return some[0] if len(some) == 1 else [torch.cat(J) for J in zip(*some, strict=True)]


def _dense_by_passes(batch: RowsOfBatch, which: Sequence[int], data: range) -> Blocks:
    with torch.enable_grad(), batch.at.leaves() as params:
        outputs = nested.differentiable(batch.at.model(params, batch.X))
        wanted = [params[i] for i in which]
        dense = [
            p.new_empty(len(data) * batch.R, *p.shape, requires_grad=False) for p in wanted
        ]
        for k, row in enumerate(rows_by_passes(outputs, wanted, batch.flat, data)):
            for J, g in zip(dense, row, strict=True):
                J[k] = g
    return [J.unflatten(0, (len(data), batch.R)) for J in dense]


def rows_by_vmap(
    at: Parameters, X: Any, S: Tensor, which: Sequence[int], at_once: int
) -> Iterator[Blocks]:
    """Dense rows ``sᵀ J``, each datum on its own and many at once.

    Args:
        at: The parameters, and the model as a function of them.
        X: Inputs: the tensors with the data leading, others are everybody's.
        S: Columns over the outputs, ``[R, N, m]``.
        which: Positions of the parameters that are wanted.
        at_once: Number of data.

    Yields:
        ``[n, R, *n_i]`` for each of these parameters and consecutive data.
    """
    N = S.shape[1]
    values = [constant(p) for p in at.tensors]
    mine = Parameters(tuple(values[i] for i in which), None, at.model, functional=True)

    def of_datum(s: Tensor, *datum: Tensor) -> Blocks:
        parts = iter(datum)
        x = nested.map_tensors(lambda t: next(parts)[None] if leads(t, N) else t, X)

        def outputs(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            full = list(values)
            for i, p in zip(which, params, strict=True):
                full[i] = p
            return nested.differentiable(at.model(full, x)), ()

        way = TorchFunc(is_vectorised=True)
        return way.vjp(outputs, mine, lambda found: as_outputs(s[:, None], found), None)

    leading = [t for t in nested.tensors(X) if leads(t, N)]
    axes = (1, *(0 for _ in leading))
    for data in chunks(N, at_once):
        with torch.no_grad():
            rows = vmap(of_datum, in_dims=axes)(S[:, data], *(t[data] for t in leading))
        yield list(rows)


def rows_by_passes(
    outputs: Sequence[Tensor], params: Sequence[Tensor], S: Tensor, data: range
) -> Iterator[Blocks]:
    """Dense rows ``sᵀ J``, a backward pass for each: even if data are coupled.

    Args:
        outputs: Of the model for the whole batch, in their graph.
        params: Leaves of the graph.
        S: Columns over the outputs, ``[R, N, m]``.
        data: The data whose rows are wanted, one after the other.
    """
    for n in data:
        for s in S:
            alone = torch.zeros_like(s)
            alone[n] = s[n]
            u = [u[0] for u in as_outputs(alone[None], outputs)]
            yield graph_vjp(outputs, params, u, create_graph=False, keep=True)


def leads(t: Tensor, N: int) -> bool:
    """Whether the ``N`` data are on the leading axis; other tensors are everybody's."""
    return t.shape[:1] == (N,)


def as_outputs(s: Tensor, outputs: Sequence[Tensor]) -> Blocks:
    """``[k, N, m]`` in the shapes of the outputs, ``[k, *m_i]``."""
    k, N, _ = s.shape
    parts = s.split([o.numel() // max(N, 1) for o in outputs], 2)
    return [p.reshape(k, *o.shape) for p, o in zip(parts, outputs, strict=True)]
