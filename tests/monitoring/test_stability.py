"""Thresholds against what torch's optimizers do on a parabola."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, RMSprop

from curvop.monitoring.stability import (
    learning_rate,
    preconditioned_threshold,
    preconditioner,
    threshold,
)

OPTIONS = [
    {},
    {"momentum": 0.5},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 3.0},
    {"momentum": 0.9, "weight_decay": 3.0},
]


def distance(curvature, **options):
    """Where 2,000 steps on ``c x² / 2`` from 1 lead."""
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = SGD([x], lr=0.1, **options)
    for _ in range(2000):
        optimizer.zero_grad()
        (curvature * x**2 / 2).backward()
        optimizer.step()
    return abs(x.item())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sgd_diverges_beyond_its_threshold_only(options):
    limit = threshold(SGD([torch.ones(1, requires_grad=True)], lr=0.1, **options))
    assert distance(0.99 * limit, **options) < 1e-3
    assert distance(1.01 * limit, **options) > 1e3


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_step_of_adam_is_the_momentum_over_the_preconditioner(kind, amsgrad):
    draw = torch.Generator().manual_seed(0)
    params = [
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in [(3, 2), (4,)]
    ]
    # in groups of another order than the parameters that the matrix is about
    groups = [{"params": params[1:], "betas": (0.7, 0.9)}, {"params": params[:1]}]
    optimizer = kind(groups, lr=1e-2, weight_decay=0.0, amsgrad=amsgrad)
    assert preconditioner(optimizer, params) is None
    for _ in range(5):
        before = torch.cat([p.detach().reshape(-1) for p in params])
        optimizer.zero_grad()
        sum((p**4).sum() for p in params).backward()
        optimizer.step()
    step = torch.cat([p.detach().reshape(-1) for p in params]) - before
    momentum = torch.cat([optimizer.state[p]["exp_avg"].reshape(-1) for p in params])
    P = preconditioner(optimizer, params)
    torch.testing.assert_close(step, -1e-2 * momentum / P, rtol=1e-10, atol=0)
    others = [*params, torch.ones(2)]
    assert preconditioner(optimizer, others) is None


def test_adam_with_a_fixed_preconditioner_diverges_beyond_its_threshold_only():
    beta, eta, P = 0.9, 0.01, 2.0
    x = torch.ones(1, requires_grad=True)
    limit = preconditioned_threshold(Adam([x], lr=eta, betas=(beta, 0.999)))
    assert limit == pytest.approx(38 / eta)
    for factor, is_stable in [(0.99, True), (1.01, False)]:
        theta, m = 1.0, 0.0
        for _ in range(3000):
            m = beta * m + (1 - beta) * factor * limit * P * theta
            theta -= eta * m / P
        assert (abs(theta) < 1e-3) == is_stable


def test_what_is_not_known_is_not_told():
    x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
    two_rates = SGD([{"params": [x], "lr": 0.1}, {"params": [y], "lr": 0.2}])
    two_momenta = SGD([{"params": [x]}, {"params": [y], "momentum": 0.5}], lr=0.1)
    assert learning_rate(None) is None
    assert learning_rate(two_rates) is None
    assert learning_rate(SGD([x], lr=torch.tensor(0.5))) == 0.5
    for optimizer in [
        None,
        two_rates,
        two_momenta,
        SGD([x], lr=0.1, momentum=0.9, dampening=0.1),
        SGD([x], lr=0.1, maximize=True),
        SGD([x], lr=0.0),
        RMSprop([x], lr=0.1),
        Adam([x], lr=0.1),
    ]:
        assert threshold(optimizer) is None
    for optimizer in [
        None,
        SGD([x], lr=0.1),
        Adam([x], lr=0.1, weight_decay=0.1),
        Adam([{"params": [x]}, {"params": [y], "betas": (0.5, 0.9)}], lr=0.1),
    ]:
        assert preconditioned_threshold(optimizer) is None
