"""The landscape: the loss at other parameters, and its quadratic model."""

from __future__ import annotations

import copy
import dataclasses

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import curvop
from curvop import Eigenpairs, HessianLinearOperator, eigsh, loss_landscape
from tests.monitoring.problems import training
from tests.plot import results

LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "weighted": nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2]).double()),
}


def directions(N, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(N, 2, generator=draw, dtype=torch.float64)


def loss_at(t, loss_func, step):
    """The loss of a copy of the model with moved parameters, on all data at once."""
    model = copy.deepcopy(t.model)
    with torch.no_grad():
        parts = step.split([p.numel() for p in model.parameters()])
        for p, part in zip(model.parameters(), parts, strict=True):
            p += part.view_as(p)
        return float(loss_func(model(t.X), t.y))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_that_of_the_moved_model(name):
    t, loss_func = training(), LOSSES[name]
    H = HessianLinearOperator(t.model, loss_func, t.params, t.data)
    D = directions(H.shape[0])
    found = loss_landscape(H, D, radius=(0.5, 2.0), num=(3, 4))
    assert found.alpha.tolist() == [-0.5, 0.0, 0.5]
    assert found.beta.tolist() == pytest.approx([-2, -2 / 3, 2 / 3, 2])
    for i, a in enumerate(found.alpha):
        for j, b in enumerate(found.beta):
            expected = loss_at(t, loss_func, a * D[:, 0] + b * D[:, 1])
            assert float(found.loss[i, j]) == pytest.approx(expected, rel=1e-12)
    zero = torch.zeros(H.shape[0], dtype=torch.float64)
    assert found.centre == pytest.approx(loss_at(t, loss_func, zero), rel=1e-12)


def test_quadratic_model_is_of_second_order():
    t = training()
    H = HessianLinearOperator(*t.problem)
    D = directions(H.shape[0])
    found = loss_landscape(H, D, num=5)
    dense, g = t.hessian(), t.gradient()
    torch.testing.assert_close(found.slopes, D.T @ g)
    torch.testing.assert_close(found.curvature, D.T @ dense @ D)
    errors = []
    for radius in (1e-3, 5e-4):
        near = loss_landscape(H, D, radius=radius, num=5)
        errors.append(float((near.loss - near.quadratic()).abs().max()))
    assert errors[0] > 0
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.05)  # a third-order rest


def test_of_eigenpairs_the_two_of_largest_magnitude():
    t = training()
    H = HessianLinearOperator(*t.problem)
    pairs = eigsh(H, 4, which="BE", tol=1e-8)
    found = loss_landscape(H.linearize(), pairs, num=2)
    two = sorted(pairs.values.tolist(), key=abs, reverse=True)[:2]
    assert found.eigenvalues.tolist() == two
    torch.testing.assert_close(found.curvature, torch.diag(found.eigenvalues))


def test_a_function_of_parameters():
    params = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    data = [(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))]
    H = HessianLinearOperator(lambda p, X: X @ p["w"], nn.MSELoss(), params, data)
    found = loss_landscape(H, torch.eye(2, dtype=torch.float64), radius=1, num=3)
    expected = ((1 + found.alpha[:, None]) ** 2 + (2 + found.beta[None, :]) ** 2) / 2
    torch.testing.assert_close(found.loss, expected)


def test_model_is_left_as_found():
    t = training()
    layers = [nn.BatchNorm1d(4).double(), *t.model]
    model = nn.Sequential(*layers)
    params = list(model.parameters())
    for p in params:
        p.grad = torch.ones_like(p)
    H = HessianLinearOperator(model, t.loss_func, params, [(t.X, t.y)])
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in params]
    rng = torch.get_rng_state()
    loss_landscape(H, directions(H.shape[0]), num=3)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [p._version for p in params] == versions
    assert all(bool((p.grad == 1).all()) for p in params)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training


def test_a_loss_that_is_infinite_far_away_leaves_a_gap():
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    H = HessianLinearOperator(
        lambda p, X: X + torch.exp(p["w"]), nn.MSELoss(), params, [(zeros, zeros)]
    )
    found = loss_landscape(H, torch.eye(2, dtype=torch.float64), radius=1000, num=3)
    is_large = found.alpha > 400
    assert bool(torch.isinf(found.loss[is_large]).all())
    assert bool(torch.isfinite(found.loss[~is_large][:, ~is_large]).all())
    ax = curvop.plot.landscape(found)
    assert ax.get_xlabel() == "step along direction 1 (curvature 2)"
    plt.close(ax.figure)


def test_a_loss_that_is_finite_nowhere_is_not_drawn():
    landscape = results.landscape()
    nowhere = dataclasses.replace(landscape, loss=landscape.loss / 0)
    with pytest.raises(ValueError, match="Expected a loss that is finite"):
        curvop.plot.landscape(nowhere)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.0}, "Expected radius"),
        ({"radius": (1.0, -1.0)}, "Expected radius"),
        ({"radius": (1.0, 1.0, 1.0)}, "Expected radius"),
        ({"num": 1}, "Expected num"),
        ({"num": 2.5}, "Expected num"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    t = training()
    H = HessianLinearOperator(*t.problem)
    with pytest.raises(ValueError, match=message):
        loss_landscape(H, directions(H.shape[0]), **options)


def test_bad_operators_and_directions():
    t = training()
    H = HessianLinearOperator(*t.problem)
    with pytest.raises(TypeError, match="needs a curvature operator"):
        loss_landscape(torch.eye(3), torch.eye(3)[:, :2])
    with pytest.raises(ValueError, match=r"Expected directions of shape \(43, 2\)"):
        loss_landscape(H, torch.eye(43))
    with pytest.raises(TypeError, match="Expected directions as a tensor"):
        loss_landscape(H, "random")
    one = torch.ones(1, dtype=torch.float64)
    lonely = Eigenpairs(one, torch.eye(43, 1).double(), one, "converged", 1)
    with pytest.raises(ValueError, match="at least two eigenpairs"):
        loss_landscape(H, lonely)


def test_a_closure_cannot_be_moved():
    w = torch.ones(2, requires_grad=True)
    H = HessianLinearOperator(
        lambda X: X @ w**2, nn.MSELoss(), [w], [(torch.eye(2), torch.ones(2))]
    )
    with pytest.raises(TypeError, match="which a closure over them does not allow"):
        loss_landscape(H, torch.eye(2))
