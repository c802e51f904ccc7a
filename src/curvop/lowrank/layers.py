"""Rows of ``V`` for the parameters of linear layers: ``Σ_t δ_t ⊗ z_t``, one pass for all.

Where data are independent, a backward pass from column ``r`` of every datum at once finds
the derivatives ``δ`` of each with respect to the output of each layer. With the layer's
input ``z`` they tell the columns, and no gradient of a weight is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from curvop.layers import Call, Calls
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
    R = S[0].shape[0]
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    biases: dict[int, list[Tensor]] = {}
    for call, D in zip(calls, _derivatives(calls, outputs, S), strict=True):
        z, D = _grouped(call, D, N, R)
        found.setdefault(call.weight, []).append((z, D))
        if call.bias is not None:
            db = D.sum(3).movedim(0, 2).flatten(2)  # [N, R, m]
            biases.setdefault(call.bias, []).append(db)
    parts: dict[int, Part] = {i: Stored(sum(dbs[1:], dbs[0])) for i, dbs in biases.items()}
    for i, pairs in found.items():
        # a layer that is called several times has more positions; no memory is shared
        z, D = (torch.cat(ts, -2) for ts in zip(*pairs, strict=True))
        outer = Outer(z, D, noted.params[i].shape)
        rows = (N, R, *outer.shape)
        parts[i] = outer if outer.pays else Stored(outer.rows().view(rows))
    return parts, rest


def _usable(
    noted: Calls, outputs: Sequence[Tensor], N: int
) -> tuple[list[Call], list[int]]:
    """Calls with the data leading, of parameters that are used in such calls only."""
    ones = [torch.ones_like(o) for o in outputs]
    elsewhere = torch.autograd.grad(
        outputs, noted.params, ones, retain_graph=True, allow_unused=True
    )
    leading = {N, *(o.shape[0] for o in outputs)}
    rest = {i for i, g in enumerate(elsewhere) if g is not None}
    calls = noted.calls
    while True:
        usable = [c for c in calls if not rest & {c.weight, c.bias} and _leads(c, leading)]
        if len(usable) == len(calls):
            return calls, sorted(rest)
        # what is not usable here makes other calls of the same parameters unusable
        kept = {id(c) for c in usable}
        dropped = [c for c in calls if id(c) not in kept]
        rest |= {i for c in dropped for i in (c.weight, c.bias) if i is not None}
        calls = usable


def _leads(call: Call, leading: set[int]) -> bool:
    """Whether the data are on the leading axis of what goes in and comes out."""
    least = 2 if call.function is F.linear else len(call.weight_shape)
    fits = call.z.ndim >= least and call.z.shape[0] in leading
    return fits and call.shape[0] == call.z.shape[0]


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
                call.z.new_zeros(call.shape) if d is None else d.detach()
                for d, call in zip(ds, calls, strict=True)
            ]
        )
    return [torch.stack(ds) for ds in zip(*columns, strict=True)]


def _grouped(call: Call, D: Tensor, N: int, R: int) -> tuple[Tensor, Tensor]:
    """``z`` ``[G, N, T, d]`` and ``δ`` ``[G, N, R, T, m]``."""
    z = call.z.detach()
    if call.function is F.linear:
        d, m = call.weight_shape[1], call.weight_shape[0]
        return z.reshape(1, N, -1, d), D.reshape(R, N, -1, m).movedim(0, 1)[None]
    G = call.options.get("groups", 1)
    z = _windows(call, z).unflatten(1, (G, -1)).movedim(1, 0)  # [G, n, d, *t, *k]
    s = len(call.weight_shape) - 2
    z = z.movedim(2, 2 + s).flatten(2 + s).flatten(2, 1 + s)  # [G, n, T, d]
    D = D.unflatten(2, (G, -1)).movedim(2, 0)  # [G, R, n, m, *t]
    D = D.movedim(3, -1).flatten(3, -2)  # [G, R, n, T, m]
    d, m = z.shape[-1], D.shape[-1]
    return z.reshape(G, N, -1, d), D.reshape(G, R, N, -1, m).movedim(1, 2)


def _windows(call: Call, z: Tensor) -> Tensor:
    """What a convolution sees at each position: ``[n, c, *s] -> [n, c, *t, *k]``."""
    kernel = call.weight_shape[2:]
    stride, padding, dilation = (
        [n] * len(kernel) if isinstance(n, int) else list(n) * (len(kernel) // len(n))
        for n in (
            call.options.get("stride", 1),
            call.options.get("padding", 0),
            call.options.get("dilation", 1),
        )
    )
    z = F.pad(z, [p for n in reversed(padding) for p in (n, n)])
    for i, k in enumerate(kernel):
        z = z.unfold(2 + i, dilation[i] * (k - 1) + 1, stride[i])[..., :: dilation[i]]
    return z
