"""Nothing of the user's is changed, whether the call succeeds or fails."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from curvop.functional import (
    approximate_hvp,
    exact_hvp,
    gauss_newton_product,
    hessian_row_sum,
    hessian_trace,
    model_hvp,
)


class Untidy(nn.Module):
    """Writes buffers in forward, and again when checkpointing calls it in backward."""

    def __init__(self, checkpointing=True):
        super().__init__()
        self.checkpointing = checkpointing
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.checkpointing:
            x = checkpoint(self.start, x, use_reentrant=False)
        else:
            x = self.start(x)
        x = nn.functional.dropout(x, 0.1, self.training)
        random.random(), numpy.random.rand()
        return self.last(x.tanh())

    def start(self, x):
        return self.norm(self.first(x))


class LossError(Exception):
    pass


X, Y = torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def calls(model, loss_fn):
    params = list(model.parameters())
    v = [torch.ones_like(p) for p in params]

    def func():
        return loss_fn(model(X), Y)

    return {
        "exact_hvp": lambda: exact_hvp(func, params, v),
        "exact_hvp with a graph": lambda: exact_hvp(func, params, v, create_graph=True),
        "approximate_hvp": lambda: approximate_hvp(func, params, v),
        "model_hvp": lambda: model_hvp(model, loss_fn, X, Y, v),
        "gauss_newton_product": lambda: gauss_newton_product(model, loss_fn, X, Y, v),
        "gauss_newton_product with a graph": lambda: gauss_newton_product(
            model, loss_fn, X, Y, v, create_graph=True
        ),
        "hessian_trace": lambda: hessian_trace(func, params, 2),
        "hessian_trace sparse": lambda: hessian_trace(func, params, 2, sparse=True),
        "hessian_row_sum": lambda: hessian_row_sum(func, params),
    }


def state(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {n: t.detach().clone() for n, t in tensors},
        "identities": {n: id(t) for n, t in tensors},
        "versions": {n: t._version for n, t in tensors},
        "grads": {n: (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()},
        "requires_grad": {n: t.requires_grad for n, t in tensors},
        "training": model.training,
        "hooks": [(len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": numpy.random.get_state()[1].copy(),
        "kernels": (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.is_grad_enabled(),
        ),
    }


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, tuple) and any(isinstance(t, torch.Tensor) for t in a):
        for s, t in zip(a, b, strict=True):
            assert_same(s, t)
    else:
        numpy.testing.assert_equal(a, b)


NAMES = list(calls(Untidy(), nn.CrossEntropyLoss()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_as_found(name, failing, training):
    # a composed norm and checkpointing do not go together
    model = Untidy(checkpointing="graph" not in name).train(training)
    evaluations = []
    for p in model.parameters():
        p.grad = torch.ones_like(p)

    def loss_fn(prediction, y):
        evaluations.append(1)
        if len(evaluations) == failing:
            raise LossError
        return nn.functional.cross_entropy(prediction, y)

    before = state(model)
    try:
        calls(model, loss_fn)[name]()
    except LossError:
        assert len(evaluations) == failing
    assert_same(state(model), before)


def test_a_graph_outlives_the_call():
    model = Untidy(checkpointing=False)
    Hv = calls(model, nn.CrossEntropyLoss())["exact_hvp with a graph"]()
    model(X)  # writes the buffers again
    torch.autograd.grad(sum(h.sum() for h in Hv), model.last.weight)
