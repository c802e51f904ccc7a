"""What optimizers divide gradients by, seen in the steps that they take."""

from __future__ import annotations

import copy

import pytest
import torch

from curvop import DiagonalLinearOperator, HessianLinearOperator
from curvop.monitoring import preconditioner_of
from tests.reporting.targets import plain

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-3, weight_decay=0.0),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-3),
    "centered": lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-3, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, eps=1e-3),
}


def trained(make, steps=4):
    model, loss, params, data = plain()
    optimizer = make(params)
    for _ in range(steps):
        for X, y in data:
            optimizer.zero_grad()
            loss(model(X), y).backward()
            optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_divided_by_it(name):
    """A step without momentum moves by the learning rate times gradient over diagonal."""
    params, optimizer = trained(OPTIMIZERS[name])
    before = [p.detach().clone() for p in params]
    optimizer.zero_grad()
    for p, q in zip(params, torch.linspace(1, 2, len(params)), strict=True):
        p.grad = torch.full_like(p, float(q))
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (0.0, group["betas"][1])
    optimizer.step()
    diagonal = preconditioner_of(params, optimizer=optimizer).diagonal
    moved = torch.cat(
        [(b - p).detach().flatten() for b, p in zip(before, params, strict=True)]
    )
    gradient = torch.cat([p.grad.flatten() for p in params])
    torch.testing.assert_close(moved * diagonal / 0.01, gradient, rtol=1e-9, atol=0)


def unstable(make, curvature):
    """Whether full-batch steps on a quadratic run away."""
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    for _ in range(3000):
        optimizer.zero_grad()
        (0.5 * curvature * w.square().sum()).backward()
        optimizer.step()
    return not bool(w.abs() < 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    ],
    ids=["plain", "momentum", "nesterov", "dampening"],
)
def test_threshold_is_where_training_becomes_unstable(make):
    w = torch.ones(1, dtype=torch.float64)
    given = preconditioner_of([w], optimizer=make([w]))
    assert given.is_identity
    assert not unstable(make, 0.99 * given.threshold)
    assert unstable(make, 1.01 * given.threshold)


def test_threshold_of_averaged_momentum():
    """Adam with its divisor held still is heavy ball of an averaged gradient."""
    params, optimizer = trained(OPTIMIZERS["Adam"])
    given = preconditioner_of(params, optimizer=optimizer)
    assert given.threshold == pytest.approx(3800)

    def runs_away(sharpness):
        w, m = 1.0, 0.0
        for _ in range(3000):
            m = 0.9 * m + 0.1 * sharpness * w
            w -= optimizer.param_groups[0]["lr"] * m
        return not abs(w) < 1

    assert not runs_away(0.99 * given.threshold)
    assert runs_away(1.01 * given.threshold)


def test_different_rates_have_no_threshold():
    _, _, params, _ = plain()
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-2)
    given = preconditioner_of(params, optimizer=optimizer)
    assert given.threshold is None
    assert len(given.remarks) == 2


def test_given_in_every_form():
    model, loss, params, data = plain()
    H = HessianLinearOperator(model, loss, params, data)
    d = torch.linspace(1, 2, H.shape[0], dtype=torch.float64)
    parts = [
        part.reshape(p.shape)
        for part, p in zip(d.split([p.numel() for p in params]), params, strict=True)
    ]
    names = [name for name, _ in model.named_parameters()]
    named = dict(zip(names, params, strict=True))
    shuffled = dict(reversed(list(zip(names, parts, strict=True))))
    for given, over in (
        (d, params),
        (parts, params),
        (shuffled, named),
        (DiagonalLinearOperator(d), params),
        (d.float(), params),
    ):
        P = preconditioner_of(over, given=given).for_matrix(H)
        torch.testing.assert_close(P @ torch.ones_like(d), d, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"given": torch.ones(3)}, "Expected 123 positive entries"),
        ({"given": torch.zeros(123)}, "the least of which is 0"),
        ({"given": "adam"}, "Expected a preconditioner as a tensor"),
        ({"given": 3.0}, "Expected a preconditioner as a tensor"),
        ({"optimizer": torch.optim.LBFGS}, "not known, only those of Ada"),
        ({"optimizer": torch.optim.Adam}, "no state for some of the parameters"),
        ({"optimizer": "others"}, "does not hold all of the parameters"),
    ],
)
def test_what_does_not_fit_is_refused(extra, message):
    model, _, params, _ = plain()
    if extra.get("optimizer") == "others":
        extra = {"optimizer": torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)}
    elif "optimizer" in extra:
        extra = {"optimizer": extra["optimizer"](params)}
    with pytest.raises(ValueError, match=message):
        preconditioner_of(params, **extra)
