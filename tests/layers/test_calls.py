"""Calls are noted with what goes in; gradients of data and directions follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from curvop.layers import Calls, Embedding, MatrixCall, Norm
from tests.cases.problem import classes, normal, seeded
from tests.comparing import error
from tests.layers.kinds import EVERY, RECURRENT, Headed, Kind

F64 = torch.float64


def noted(model: nn.Module, X: Any) -> tuple[Calls, Any]:
    """A forward pass of the model with leaves, and its calls."""
    with Calls(list(model.parameters()), every=True) as calls:
        return calls, model(X)


def check(model: nn.Module, X: Any) -> Calls:
    """Inputs and gradients of layers tell gradients of data, and how outputs move."""
    params, N = list(model.parameters()), len(X)
    calls, out = noted(model, X)
    plain = model(X)
    assert error(out, plain) <= 1e-12
    assert not calls.elsewhere([out])
    assert not calls.refused
    u = normal(F64, *out.shape, seed=3)
    deltas = torch.autograd.grad(out, calls.edges(), u)
    of_data = [p.new_zeros(N, *p.shape, requires_grad=False) for p in params]
    summed = [torch.zeros_like(p, requires_grad=False) for p in params]
    for call, delta in zip(calls.calls, deltas, strict=True):
        assert call.leading == N
        U, moved = torch.stack([delta, 2 * delta]), torch.zeros(())
        V, c = (
            None if i is None else normal(F64, *params[i].shape, seed=4)
            for i in (call.weight, call.bias)
        )
        if V is not None:
            of_weight = call.weight_gradients(U, N)
            assert error(2 * of_weight[0], of_weight[1]) <= 1e-12
            of_data[call.weight] += of_weight[0]
            gradient = call.weight_gradient(delta)
            summed[call.weight] += gradient
            moved = moved + (gradient * V).sum()
        if c is not None:
            of_bias = call.bias_gradients(U, N)
            assert error(2 * of_bias[0], of_bias[1]) <= 1e-12
            of_data[call.bias] += of_bias[0]
            summed[call.bias] += of_bias[0].sum(0)
            moved = moved + (of_bias[0].sum(0) * c).sum()
        jvp = call.jvp(V, c)
        assert jvp.shape == call.shape
        assert error((jvp * delta).sum(), moved) <= 1e-10
        if isinstance(call, MatrixCall):
            z = call.inputs(N)
            assert z.shape[2:] == (call.num_positions(N), call.input_size)
            assert torch.equal(torch.cat([t for _, t in call.input_chunks(N)], 1), z)
            assert torch.equal(call.inputs(N, slice(1, 3)), z[:, 1:3])
            assert error(call.input_sums(N), z.sum(2)) <= 1e-12
    for n in range(N):
        only = torch.zeros_like(u)
        only[n] = u[n]
        right = torch.autograd.grad(plain, params, only, retain_graph=True)
        for got, gradient in zip(of_data, right, strict=True):
            assert error(got[n], gradient) <= 1e-11
    for got, gradients in zip(summed, of_data, strict=True):
        assert error(got, gradients.sum(0)) <= 1e-11
    return calls


@pytest.mark.parametrize("name", EVERY)
def test_every_kind(name: str) -> None:
    problem = EVERY[name].problem()
    calls = check(problem.model, problem.X)
    assert {i for call in calls.calls for i in call.positions} == set(
        range(len(problem.params))
    )


@pytest.mark.parametrize("padding", [None, 1, -1])
def test_embedding(padding: int | None) -> None:
    model = seeded(lambda: nn.Embedding(4, 3, padding_idx=padding), F64)
    (call,) = check(model, classes(4, 5, 6)).calls
    assert isinstance(call, Embedding)


def test_attention() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, X: Tensor) -> Tensor:
            out: Tensor = self.attention(X, X, X, need_weights=False)[0]
            return out

    calls = check(seeded(Model, F64), normal(F64, 5, 3, 4))
    assert [type(call).__name__ for call in calls.calls] == ["Linear", "Linear"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_loop_is_the_layer(kind: Any, train: bool) -> None:
    """All that is returned, with dropout drawn alike; positions or data first."""
    layer = seeded(lambda: kind(2, 3, 3, dropout=0.5, bidirectional=True), F64).train(train)
    X, h = normal(F64, 4, 5, 2), normal(F64, 6, 5, 3, seed=2)
    state = (h, h.sin()) if kind is nn.LSTM else h
    found = []
    for inside in (False, True):
        torch.manual_seed(0)
        found.append(noted(layer, X)[1] if inside else layer(X))
        found.append(layer(X, state))
        with Calls(list(layer.parameters()), every=inside):
            found.append(layer(X, state))
        found.append((torch.rand(3),))
    for a, b in zip(found[:4], found[4:], strict=True):
        for s, t in zip(_flat(a), _flat(b), strict=True):
            torch.testing.assert_close(s, t, rtol=1e-12, atol=1e-13)


def _flat(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [t for part in x for t in _flat(part)]


def test_packed_sequences_are_left_alone() -> None:
    layer = seeded(lambda: nn.LSTM(2, 3), F64)
    X = pack_sequence([normal(F64, 3, 2), normal(F64, 2, 2)])
    calls, (out, _) = noted(layer, X)
    assert not calls.calls
    assert calls.elsewhere([out.data]) == {0, 1, 2, 3}


def test_a_recurrent_layer_without_parameters_of_ours_is_not_opened() -> None:
    kind: Kind = RECURRENT["lstm"]
    model = seeded(lambda: Headed(kind.build, 0, 6), F64)
    with Calls(list(model.head.parameters()), every=True) as calls:
        model(kind.inputs())
    assert [call.weight for call in calls.calls] == [0]


def test_only_what_multiplies_matrices() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4)), F64)
    with Calls(list(model.parameters())) as calls:
        out = model(normal(F64, 5, 2))
    assert [call.weight for call in calls.calls] == [0]
    assert calls.elsewhere([out]) == {2, 3}


def test_what_is_not_noted_is_told() -> None:
    table, layer = (
        torch.ones(3, 2, requires_grad=True),
        torch.ones(2, 2, requires_grad=True),
    )
    with Calls([table, layer], every=True) as calls:
        F.embedding(torch.tensor([0, 1]), table, scale_grad_by_freq=True)
        with torch.no_grad():
            F.linear(torch.ones(1, 2), layer)
    assert not calls.calls
    assert "option" in calls.refused[0]
    assert "gradients are switched off" in calls.refused[1]


def test_batch_statistics() -> None:
    """They mix data; running ones are written to once."""
    norm = seeded(lambda: nn.BatchNorm1d(2), F64).train()
    X = normal(F64, 5, 2)
    calls, _ = noted(norm, X)
    (call,) = calls.calls
    assert isinstance(call, Norm)
    assert call.mixes_data
    assert error(norm.running_mean, 0.1 * X.mean(0)) <= 1e-12
    assert int(norm.num_batches_tracked) == 1


def test_gradients_are_told_as_they_arrive() -> None:
    model, X = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), F64), None
    X, told = normal(F64, 4, 2), []
    with Calls(
        list(model.parameters()), on_gradient=lambda i, g: told.append((i, g))
    ) as calls:
        out = model(X)
    grads = torch.autograd.grad(out, calls.edges(), torch.ones_like(out))
    assert [i for i, _ in told] == [1, 0]
    assert all(torch.equal(g, grads[i]) for i, g in told)


def test_an_input_that_is_written_to() -> None:
    model, X = seeded(lambda: nn.Linear(2, 3), F64), normal(F64, 4, 2)
    calls, _ = noted(model, X)
    calls.calls[0].check_version()
    X += 1
    with pytest.raises(ValueError, match="writes in place"):
        calls.calls[0].check_version()
