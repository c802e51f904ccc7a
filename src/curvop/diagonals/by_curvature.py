"""The diagonal of the Hessian: curvature in the outputs of layers, or unit vectors.

The Hessian in the weight of a linear layer that is called once is, for one datum,
``Σ_{t,t'} (∂²ℓ / ∂a_t ∂a_t') ⊗ z_t z_t'ᵀ``: the layer's input ``z`` does not depend on the
weight, and its output ``a`` is linear in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from curvop.autograd import gradient, pullback
from curvop.curvature import CurvatureLinearOperator
from curvop.derivatives import Aux
from curvop.diagonals.by_gradients import ByGradients
from curvop.diagonals.columns import ByColumns
from curvop.diagonals.computation import Way
from curvop.diagonals.layer_sums import (
    NUMBERS,
    as_gradient,
    by_position,
    of_pairs,
    patches,
    positions,
)
from curvop.diagonals.noting import Noted, noted, used
from curvop.diagonals.output_columns import columns_at_once
from curvop.diagonals.per_datum import vectorised
from curvop.diagonals.pulling import Input, pull_columns
from curvop.layers import Call
from curvop.operators import Blocks, probe
from curvop.risk import nested, refuse_reading

_GRADIENTS = ByGradients("layers", vectorised)


@dataclass(frozen=True)
class ByCurvature:
    """``∂²L / ∂θ_i²`` by double backward.

    Attributes:
        G: The GGN, whose diagonal block is that of the Hessian where the prediction is
            piecewise linear in a parameter; ``None`` to take the Hessian for all.
        gradients: The diagonal of the GGN.
        in_layers: Parameters that may be told from the curvature in the outputs of their
            layers, of all data at once.
    """

    G: CurvatureLinearOperator | None = None
    gradients: ByGradients = _GRADIENTS
    in_layers: frozenset[int] = frozenset()

    @property
    def form(self) -> str:
        """What to call it."""
        return "columns" if self.G is None else "layers"

    def for_model(self, A: CurvatureLinearOperator, X: Any, y: Any) -> ByCurvature:
        """Find the parameters of layers, on a few data."""
        if self.G is None:
            return self
        refuse_reading(self.G.risk, X, y)  # its block is not that of the Hessian
        with torch.enable_grad(), A.risk.parameters.leaves() as params:
            with noted(params) as layers:
                A.risk.predict(params, X)
            N = A.risk.data.batch_size(X, y)
            gradients = replace(self.gradients, in_layers=frozenset(layers.sums(N, 1)))
            found = frozenset(_pays(layers, N))
        return replace(self, gradients=gradients, in_layers=found)

    def __call__(self, A: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Blocks, Aux]:
        """The diagonal for one batch's summed loss."""
        everything = range(len(A.risk.parameters.tensors))
        found: dict[int, Tensor] = {}
        if self.G is not None:
            linear = piecewise_linear(A, X, y)
            found, _ = self.gradients.of(self.G, X, y, linear)
            found |= _by_layers(A, X, y, self.in_layers.difference(linear))
        rest = [i for i in everything if i not in found]
        others, tally = _by_units(A, X, y, rest)
        found |= others
        return [found[i] for i in everything], tally


def piecewise_linear(A: CurvatureLinearOperator, X: Any, y: Any) -> list[int]:
    """Parameters in each of which the prediction is linear around its value.

    The Hessian is the GGN and that of ``⟨c, f(θ)⟩`` with ``c = ∇_f ℓ`` held fixed. Where
    the prediction is piecewise linear, derivatives of the second one are exact zeros, not
    rounded ones: a random vector tells.
    """
    with torch.enable_grad(), A.risk.parameters.leaves() as params:
        prediction = A.risk.predict(params, X)
        outputs = nested.differentiable(prediction)
        leaves = [o.detach().requires_grad_() for o in outputs]
        loss = A.risk.loss.total(nested.refill(prediction, leaves), y)
        pairs = zip(outputs, gradient(loss, leaves, create_graph=False), strict=True)
        gradients = gradient(torch.stack([(o * c).sum() for o, c in pairs]).sum(), params)
        V = probe([p.detach() for p in params])
        return [
            i
            for i, (p, g, v) in enumerate(zip(params, gradients, V, strict=True))
            if not g.requires_grad
            or not bool(pullback([g], [p], [v], create_graph=False, keep=True)[0].any())
        ]


def _pays(layers: Noted, N: int) -> dict[int, tuple[int, Call]]:
    """Linear layers and convolutions with one call, and fewer positions than inputs.

    By the parameter: the layer's position among the edges, and its call.
    """
    sums = layers.sums(N, 1)
    found: dict[int, tuple[int, Call]] = {}
    for e, call in enumerate(layers.calls):
        if positions(call) < call.weight_shape[1:].numel():
            for i in (call.weight, call.bias):
                if i is not None and i in sums and sums[i].edges == [e]:
                    found[i] = (e, call)
    return found


def _by_layers(
    A: CurvatureLinearOperator, X: Any, y: Any, in_layers: frozenset[int]
) -> dict[int, Tensor]:
    """The diagonal for parameters of layers that are used nowhere else."""
    if not in_layers:
        return {}
    with torch.enable_grad(), A.risk.parameters.leaves() as params:
        with noted(params) as layers:
            loss = A.risk.loss.total(A.risk.predict(params, X), y)
        if not loss.requires_grad:
            return {}
        elsewhere = used([loss], params)
        N = A.risk.data.batch_size(X, y)
        mine = {i: at for i, at in _pays(layers, N).items() if i in in_layers}
        mine = {i: at for i, at in mine.items() if i not in elsewhere}
        calls = dict(mine.values())
        edges = [call.edge for call in calls.values()]
        deltas = torch.autograd.grad(
            loss,
            edges,  # type: ignore[arg-type]
            create_graph=True,
            allow_unused=True,
        )
        found: dict[int, Tensor] = {}
        for (e, call), delta in zip(calls.items(), deltas, strict=True):
            k = columns_at_once(A, X, call.size)
            weight, bias = _of_layer(call, delta, layers.input(e), k)
            both = {call.weight: weight, call.bias: bias}
            found |= {i: both[i] for i, (at, _) in mine.items() if at == e}
        return found


def _of_layer(call: Call, delta: Tensor | None, at: Input, k: int) -> tuple[Tensor, Tensor]:
    """The diagonal for weight and bias of one call, ``k`` columns at once."""
    z = patches(call)  # [N, g, T, i]
    N, g, T, i = z.shape
    outputs = call.weight_shape[0]
    wide = torch.promote_types(z.dtype, torch.float32)
    weight = torch.zeros(outputs, i, dtype=wide, device=z.device)
    bias = weight.new_zeros(outputs)
    if delta is not None and delta.requires_grad:
        each = outputs // g
        step = max(1, k // T, min(each, NUMBERS // (N * T * T)))
        for group in range(g):
            for o in range(0, each, step):
                rows = range(group * each + o, group * each + min(o + step, each))
                M = _curvature(call, delta, at, rows, T, k).to(wide)
                some = slice(rows.start, rows.stop)
                bias[some] = M.sum((0, 2, 3))
                weight[some] = of_pairs(M[:, None], z[:, group : group + 1])
    return weight.view(call.weight_shape), bias


def _curvature(
    call: Call, delta: Tensor, at: Input, outputs: range, T: int, k: int
) -> Tensor:
    """``∂²ℓ_n / ∂a_{n,t,o} ∂a_{n,t',o}`` for some outputs ``o``, ``[N, o, T, T']``."""
    N, each = call.shape[0], call.weight_shape[0] // _groups(call)
    places = torch.tensor([(o // each, t, o % each) for o in outputs for t in range(T)])
    found = []
    for group, t, o in (part.T for part in places.split(k)):
        r = torch.arange(len(t))
        U = at.zeros(len(t)).new_zeros(len(t), N, _groups(call), T, each)
        U[r, :, group, t, o] = 1
        H = pull_columns([delta], {0: at}, [as_gradient(U, call)])[0]
        found.append(by_position(H, call)[r, :, group, :, o])  # [k, N, T']
    return torch.cat(found).view(len(outputs), T, N, T).permute(2, 0, 1, 3)


def _groups(call: Call) -> int:
    return int(call.options.get("groups", 1))


def _by_units(
    A: CurvatureLinearOperator, X: Any, y: Any, some: Sequence[int]
) -> tuple[dict[int, Tensor], Aux]:
    """The diagonal for any parameters: a unit vector for each entry."""
    with torch.enable_grad(), A.risk.parameters.leaves() as params:
        prediction = A.risk.predict(params, X)
        loss = A.risk.loss.total(prediction, y)
        tally = A.risk.tally(nested.map_tensors(Tensor.detach, prediction), y, loss)
        mine = [params[i] for i in some]
        gradients = gradient(loss, mine) if mine else []
        found = {
            i: _of_parameter(p, g, columns_at_once(A, X, p.numel()))
            for i, p, g in zip(some, mine, gradients, strict=True)
        }
    return found, tally


def _of_parameter(p: Tensor, g: Tensor, k: int) -> Tensor:
    """``∂g_i / ∂p_i`` for a gradient ``g``, ``k`` columns at once."""
    if not g.requires_grad:
        return torch.zeros_like(p, requires_grad=False)
    at, parts = Input(p, p.shape, p.detach()), []
    for j in torch.arange(p.numel(), device=p.device).split(k):
        rows = torch.arange(len(j), device=p.device)
        E = torch.zeros(len(j), p.numel(), dtype=p.dtype, device=p.device)
        E[rows, j] = 1
        H = pull_columns([g], {0: at}, [E.view(-1, *p.shape)])[0]
        parts.append(H.reshape(len(j), -1)[rows, j])
    return torch.cat(parts).view(p.shape)


def ways_by_curvature(G: CurvatureLinearOperator) -> tuple[Way, ...]:
    """From the quickest to the one that is right for every model.

    Args:
        G: The GGN for the same model, loss and data.
    """
    return ByCurvature(G), ByCurvature(), ByColumns()
