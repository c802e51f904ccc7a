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

from curvop.autograd import gradient, graph_vjp
from curvop.curvature import CurvatureLinearOperator
from curvop.derivatives import Aux
from curvop.diagonals.layer_sums import (
    NUMBERS,
    as_weight,
    by_position,
    layer_sums,
    of_pairs,
)
from curvop.diagonals.output_columns import columns_at_once
from curvop.diagonals.per_datum import vectorised
from curvop.diagonals.squared_gradients import SquaredGradients
from curvop.diagonals.vjp import Input, vjp_columns
from curvop.diagonals.ways import UnitVectors, Way
from curvop.layers import Calls, MatrixCall
from curvop.operators import Blocks, probe
from curvop.risk import nested, refuse_reading

_GRADIENTS = SquaredGradients("layers", vectorised)


@dataclass(frozen=True)
class SecondDerivatives:
    """``∂²L / ∂θ_i²`` by double backward.

    Attributes:
        G: The GGN, whose diagonal block is that of the Hessian where the prediction is
            piecewise linear in a parameter; ``None`` to take the Hessian for all.
        gradients: The diagonal of the GGN.
        in_layers: Parameters that may be told from the curvature in the outputs of their
            layers, of all data at once.
    """

    G: CurvatureLinearOperator | None = None
    gradients: SquaredGradients = _GRADIENTS
    in_layers: frozenset[int] = frozenset()

    @property
    def form(self) -> str:
        """What to call it."""
        return "columns" if self.G is None else "layers"

    def for_model(self, A: CurvatureLinearOperator, X: Any, y: Any) -> SecondDerivatives:
        """Find the parameters of layers, on a few data."""
        if self.G is None:
            return self
        refuse_reading(self.G.risk, X, y)  # its block is not that of the Hessian
        with torch.enable_grad(), A.risk.parameters.leaves() as params:
            with Calls(params, every=True) as noted:
                A.risk.predict(params, X)
            N = A.risk.data.batch_size(X, y)
            gradients = replace(
                self.gradients, in_layers=frozenset(layer_sums(noted, N, 1))
            )
            found = frozenset(_pays(noted, N))
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
            or not bool(graph_vjp([g], [p], [v], create_graph=False, keep=True)[0].any())
        ]


def _pays(noted: Calls, N: int) -> dict[int, tuple[int, MatrixCall]]:
    """Parameters of layers with one call, and fewer positions than inputs.

    By the parameter: the position of the call, and the call.
    """
    sums = layer_sums(noted, N, 1)
    found: dict[int, tuple[int, MatrixCall]] = {}
    for e, call in enumerate(noted.calls):
        if not isinstance(call, MatrixCall) or call.num_positions(N) >= call.input_size:
            continue
        for i in (call.weight, None if call.bias_apart else call.bias):
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
        with Calls(params, every=True) as noted:
            loss = A.risk.loss.total(A.risk.predict(params, X), y)
        if not loss.requires_grad:
            return {}
        N = A.risk.data.batch_size(X, y)
        usable = in_layers - noted.elsewhere([loss])
        mine = {i: at for i, at in _pays(noted, N).items() if i in usable}
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
            both = _of_layer(call, delta, Input.of(call, params[0]), N, k)
            diagonals = dict(zip((call.weight, call.bias), both, strict=True))
            found |= {i: diagonals[i] for i, (at, _) in mine.items() if at == e}
        return found


def _of_layer(
    call: MatrixCall, delta: Tensor | None, at: Input, N: int, k: int
) -> tuple[Tensor, Tensor]:
    """The diagonal for weight and bias of one call, ``k`` columns at once."""
    z = call.inputs(N).movedim(0, 1)
    _, g, T, i = z.shape
    outputs = call.weight_shape.numel() // i
    wide = torch.promote_types(z.dtype, torch.float32)
    weight = torch.zeros(outputs, i, dtype=wide, device=z.device)
    bias = weight.new_zeros(outputs)
    if delta is not None and delta.requires_grad:
        each = outputs // g
        step = max(1, k // T, min(each, NUMBERS // (N * T * T)))
        for group in range(g):
            for o in range(0, each, step):
                rows = range(o, min(o + step, each))
                M = _curvature(call, delta, at, group, rows, N, k).to(wide)
                some = slice(group * each + rows.start, group * each + rows.stop)
                bias[some] = M.sum((0, 2, 3))
                weight[some] = of_pairs(M[:, None], z[:, group : group + 1])
    return as_weight(weight, call.weight_shape, g, call.transposed), bias


def _curvature(
    call: MatrixCall,
    delta: Tensor,
    at: Input,
    group: int,
    outputs: range,
    N: int,
    k: int,
) -> Tensor:
    """``∂²ℓ_n / ∂a_{n,t,o} ∂a_{n,t',o}`` for some outputs ``o``, ``[N, o, T, T']``."""
    # where the entries by position are in ``a``, from one on; zero is outside of it
    entries = torch.arange(1, call.shape.numel() + 1, device=delta.device)
    entries = by_position(call, entries.view(1, *call.shape), N)[0, :, group]  # [N, T, o]
    T = entries.shape[1]
    pairs = torch.tensor([(o, t) for o in outputs for t in range(T)])
    found = []
    for o, t in (part.T for part in pairs.split(k)):
        r, at_r = torch.arange(len(t), device=delta.device), entries[:, t, o].T  # [k, N]
        U = at.zeros(len(t)).flatten(1)
        U.view(-1)[(r[:, None] * U.shape[1] + at_r - 1)[at_r > 0]] = 1
        units = U.view(-1, *call.shape)
        H = vjp_columns([delta], {0: at}, [units])[0]
        found.append(by_position(call, H, N)[r, :, group, :, o])  # [k, N, T']
    return torch.cat(found).view(len(outputs), T, N, T).permute(2, 0, 1, 3)


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
        H = vjp_columns([g], {0: at}, [E.view(-1, *p.shape)])[0]
        parts.append(H.reshape(len(j), -1)[rows, j])
    return torch.cat(parts).view(p.shape)


def ways_by_second_derivatives(G: CurvatureLinearOperator) -> tuple[Way, ...]:
    """From the quickest to the one that is right for every model.

    Args:
        G: The GGN for the same model, loss and data.
    """
    return SecondDerivatives(G), SecondDerivatives(), UnitVectors()
