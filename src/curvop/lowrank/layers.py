"""Rows of ``V`` for the parameters of layers: ``Σ_t δ_t ⊗ z_t``, one pass for all.

Where data are independent, a backward pass from column ``r`` of every datum at once finds
the derivatives ``δ`` of each with respect to the output of each layer. With the layer's
input ``z`` they tell the columns, and no gradient of a weight is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvop.layers import Call, Calls, MatrixCall
from curvop.lowrank.parts import Outer, Part, Stored
from curvop.operators import Blocks


def parts_of_layers(
    noted: Calls, outputs: Sequence[Tensor], S: Blocks, N: int
) -> tuple[dict[int, Part], list[int]]:
    """The parts of all parameters that are used in linear layers only.

    Args:
        noted: The calls of a forward pass.
        outputs: What came out, in a graph.
        S: Columns over the outputs, ``[R, *m_i]`` each, data leading in ``m_i``.
        N: Number of data.

    Returns:
        The parts, by the position of the parameter, and the positions of parameters that
        are also used elsewhere.
    """
    calls, rest = _usable(noted, outputs, N)
    if not calls:
        return {}, rest
    found: dict[int, list[tuple[Call, Tensor]]] = {}
    for call, D in zip(calls, _derivatives(calls, outputs, S), strict=True):
        for i in set(call.positions):
            found.setdefault(i, []).append((call, D))
    return {i: _part(i, mine, N) for i, mine in found.items()}, rest


def _part(i: int, calls: Sequence[tuple[Call, Tensor]], N: int) -> Part:
    """The part of parameter ``i`` from its calls, with the derivatives of their outputs."""
    pairs = [
        (call.inputs(N), call.output_gradients(D, N).movedim(0, 2))
        for call, D in calls
        if isinstance(call, MatrixCall) and call.weight == i and not call.transposed
    ]
    if len(pairs) == len(calls):
        # a layer that is called several times has more positions; no memory is shared
        z, D = (torch.cat(ts, -2) for ts in zip(*pairs, strict=True))
        outer = Outer(z, D, calls[0][0].weight_shape)
        if outer.pays:
            return outer
        return Stored(outer.rows().view(N, len(calls[0][1]), *outer.shape))
    terms = [call.weight_gradients(D, N) for call, D in calls if call.weight == i]
    terms += [call.bias_gradients(D, N) for call, D in calls if call.bias == i]
    return Stored(sum(terms[1:], terms[0]).movedim(0, 1))


def _usable(
    noted: Calls, outputs: Sequence[Tensor], N: int
) -> tuple[list[Call], list[int]]:
    """Calls with the data leading, of parameters that are used in such calls only."""
    leading = {N, *(o.shape[0] for o in outputs)}
    rest = noted.elsewhere(outputs)
    calls = noted.calls
    while True:
        usable = [
            c
            for c in calls
            if c.leading in leading and not c.mixes_data and rest.isdisjoint(c.positions)
        ]
        if len(usable) == len(calls):
            return calls, sorted(rest)
        # what is not usable here makes other calls of the same parameters unusable
        kept = {id(c) for c in usable}
        rest |= {i for c in calls if id(c) not in kept for i in c.positions}
        calls = usable


def _derivatives(
    calls: Sequence[Call], outputs: Sequence[Tensor], S: Blocks
) -> list[Tensor]:
    """``δ`` of each call, ``[R, *a.shape]``."""
    edges = [call.edge for call in calls]
    columns = []
    for r in range(len(S[0])):
        ds = torch.autograd.grad(
            outputs,
            edges,  # type: ignore[arg-type]
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
    return [torch.stack(ds) for ds in zip(*columns, strict=True)]
