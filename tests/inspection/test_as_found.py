"""Whatever happens, the user finds everything as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curvop.inspection import preflight
from tests.cases import attention, awkward, layers, parameterizations
from tests.cases.test_as_found import state
from tests.inspection import models


def surroundings() -> list[Any]:
    """All that is global."""
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    ]


def same(before: Any, after: Any) -> bool:
    return all(
        was[:-1] == now[:-1] and torch.equal(was[-1], now[-1])
        for was, now in zip(before, after, strict=True)
    )


@pytest.mark.parametrize(
    "build",
    [
        layers.batch_norm_train,
        attention.multihead_eval,
        awkward.counter,
        parameterizations.tied,
    ],
)
def test_as_found(build: Callable[..., Any]) -> None:
    problem = build(torch.float32)
    model = problem.model
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    next(model.parameters()).requires_grad_(False)
    before, modes = state(model), [m.training for m in model.modules()]
    around = surroundings()
    models.of_problem(problem, max_seconds=1)
    assert same(before, state(model))
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert around == surroundings()


def test_closure_as_found() -> None:
    problem = parameterizations.closure(torch.float32)
    b, W = problem.params
    b.requires_grad_(False)
    W.grad = torch.ones_like(W)
    before = b.clone(), W.detach().clone()
    models.of_problem(problem)
    assert (b.requires_grad, W.requires_grad) == (False, True)
    assert b.grad is None
    assert torch.equal(W.grad, torch.ones_like(W))
    assert torch.equal(b, before[0])
    assert torch.equal(W.detach(), before[1])


def test_loader_as_found() -> None:
    X, y = models.data()[0]
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(
        TensorDataset(X, y), batch_size=2, shuffle=True, generator=generator
    )
    before, around = generator.get_state(), surroundings()
    found = models.looked_at(models.mlp(), loader)
    assert found.sample_size == 2
    assert torch.equal(generator.get_state(), before)
    assert around == surroundings()


class Interrupted(nn.Module):
    """Ctrl-C, or an error, in a forward pass; writes a buffer before."""

    def __init__(self, error: BaseException, at: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.error, self.at = error, at
        self.calls: list[int] = []  # shared with copies of the module

    def forward(self, X: Tensor) -> Tensor:
        self.calls.append(1)
        self.seen += 1
        if len(self.calls) == self.at:
            raise self.error
        return self.linear(X)


@pytest.mark.parametrize("at", [1, 2, 3, 9, 40])
def test_ctrl_c(at: int) -> None:
    model = Interrupted(KeyboardInterrupt(), at)
    before, around = state(model), surroundings()
    with pytest.raises(KeyboardInterrupt):
        models.of(model)
    assert len(model.calls) == at
    assert same(before, state(model))
    assert around == surroundings()


@pytest.mark.parametrize("at", [1, 3, 9])
def test_errors_do_not_leave(at: int) -> None:
    model = Interrupted(RuntimeError("now and then"), at)
    before, around = state(model), surroundings()
    found = models.of(model)
    assert len(model.calls) > at
    assert same(before, state(model))
    assert around == surroundings()
    assert str(found)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_in_every_mode(context: Any) -> None:
    model = models.mlp()
    with context():
        found = models.of(model)
    assert found.is_ready
    assert {t.verdict for t in found.trials} == {"right", "declined"}


def test_params_as_an_iterator_and_a_dict() -> None:
    model = models.mlp()
    for params in (model.parameters(), dict(model.named_parameters())):
        found = preflight(model, nn.MSELoss(), params, models.data(), max_seconds=1e-6)
        assert found.num_parameters == 26
        assert found.references[0].doubt is None
