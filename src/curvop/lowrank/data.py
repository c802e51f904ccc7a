"""Rows of ``V`` for any parameter, datum by datum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from curvop.lowrank.parts import Part, Stored
from curvop.operators import Blocks
from curvop.risk import Parameters, constant, nested

# Columns that are pulled back at once: each takes the memory of a datum's activations.
COLUMNS_AT_ONCE = 512


def parts_by_vmap(
    at: Parameters, X: Any, S: Blocks, N: int, which: Sequence[int]
) -> dict[int, Part]:
    """Each datum on its own, many at once.

    Args:
        at: The parameters.
        X: Inputs, the data leading in each tensor.
        S: Columns over the outputs, ``[R, *m_i]`` each, data leading in ``m_i``.
        N: Number of data.
        which: Positions of the parameters that are wanted.
    """
    R = S[0].shape[0]
    columns = [s.unflatten(1, (N, -1)).movedim(0, 1) for s in S]  # [N, R, q, ...]
    values = [constant(p) for p in at.tensors]

    def of_datum(columns: Blocks, *datum: Tensor) -> tuple[Tensor, ...]:
        parts = iter(datum)
        one = nested.map_tensors(lambda _: next(parts)[None], X)

        def predict(*p: Tensor) -> tuple[Tensor, ...]:
            full = list(values)
            for i, q in zip(which, p, strict=True):
                full[i] = q
            return nested.differentiable(at.model(full, one))

        _, pull = vjp(predict, *(values[i] for i in which))  # type: ignore[misc]
        rows: tuple[Tensor, ...] = vmap(pull)(tuple(columns))
        return rows

    step = max(1, COLUMNS_AT_ONCE // max(R, 1))
    with torch.no_grad():
        data = list(nested.tensors(X))
        rows = vmap(of_datum, chunk_size=step)(columns, *data)
    return {i: Stored(V) for i, V in zip(which, rows, strict=True)}


def parts_by_passes(
    at: Parameters, X: Any, S: Blocks, N: int, which: Sequence[int], data: range
) -> dict[int, Part]:
    """One backward pass for each column: whatever the model, even if data are coupled.

    Args:
        at: The parameters.
        X: Inputs.
        S: Columns over the outputs, ``[R, *m_i]`` each, data leading in ``m_i``.
        N: Number of data.
        which: Positions of the parameters that are wanted.
        data: The data whose columns are wanted.
    """
    R = S[0].shape[0]
    with torch.enable_grad(), at.leaves() as params:
        found = nested.differentiable(at.model(params, X))
        outputs = [o for o in found if o.requires_grad]
        S = [s for s, o in zip(S, found, strict=True) if o.requires_grad]
        if not outputs:
            return {}
        wanted = [params[i] for i in which]
        rows = [p.new_empty(len(data), R, *p.shape, requires_grad=False) for p in wanted]
        for k, n in enumerate(data):
            for r in range(R):
                us = [torch.zeros_like(s[0]) for s in S]
                for u, s in zip(us, S, strict=True):
                    q = u.shape[0] // N
                    u[n * q : (n + 1) * q] = s[r, n * q : (n + 1) * q]
                grads = torch.autograd.grad(
                    outputs,
                    wanted,
                    us,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for V, g in zip(rows, grads, strict=True):
                    V[k, r] = g
    return {i: Stored(V) for i, V in zip(which, rows, strict=True)}
