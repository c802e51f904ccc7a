"""Derivatives and Newton steps along eigenvectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvop import EFLinearOperator
from tests.comparing import error, random

from .problems import factor, images, operator, perceptron, truth

LOSS = nn.CrossEntropyLoss()


def gradient() -> list[Tensor]:
    model = perceptron()
    X, y = images()
    return list(torch.autograd.grad(LOSS(model(X), y), list(model.parameters())))


def flat(blocks: list[Tensor]) -> Tensor:
    return torch.cat([b.flatten() for b in blocks])


def test_the_step_in_the_full_space() -> None:
    A, D, g = factor(), truth(), gradient()
    found = A.newton_step(g, 0.1)
    d = -torch.linalg.solve(D + 0.1 * torch.eye(len(D)).double(), flat(g))
    assert error(found.step, d) <= 1e-12
    assert abs(found.slope - float(flat(g) @ d)) <= 1e-12
    assert abs(found.curvature - float(d @ D @ d)) <= 1e-12
    model = float(flat(g) @ d + d @ D @ d / 2)
    assert abs(found.predicted_decrease + model) <= 1e-12
    assert found.predicted_decrease > 0


def test_the_prediction_comes_true_for_a_quadratic_loss() -> None:
    model = nn.Linear(5, 2).double()
    X, y = images()[0], random(7, 2)
    loss = nn.MSELoss()
    A = operator(model, loss, [(X, y)]).factor()
    params = list(model.parameters())
    before = loss(model(X), y)
    g = torch.autograd.grad(before, params)
    step = A.newton_step(g, 1e-3)
    with torch.no_grad():
        parts = step.step.split([p.numel() for p in params])
        moved = [p + s.view_as(p) for p, s in zip(params, parts, strict=True)]
        after = loss(X @ moved[0].T + moved[1], y)
    assert abs(float(before.detach() - after) - step.predicted_decrease) <= 1e-13


@pytest.mark.parametrize("k", [None, 3])
def test_directions(k: int | None) -> None:
    A, D, g = factor(), truth(), flat(gradient())
    found = A.directions(g, k)
    assert found.vectors.shape == (len(D), k or 14)
    assert error(found.slopes, found.vectors.T @ g) <= 1e-12
    curvatures = torch.einsum("pk,pq,qk->k", found.vectors, D, found.vectors)
    assert error(found.values, curvatures) <= 1e-12
    step = found.newton_step(0.1)
    d = -found.vectors @ (found.slopes / (found.values + 0.1))
    assert error(step.step, d) <= 1e-13
    assert abs(step.predicted_decrease + float(g @ d + d @ D @ d / 2)) <= 1e-12
    # the gradient of the data lies in the span of all directions
    if k is None:
        assert error(step.step, A.newton_step(g, 0.1).step) <= 1e-10


def test_a_damping_for_each_direction() -> None:
    found = factor().directions(gradient(), 2)
    damping = torch.tensor([1.0, 3.0], dtype=torch.float64)
    d = -found.vectors @ (found.slopes / (found.values + damping))
    assert error(found.newton_step(damping).step, d) <= 1e-13


def test_derivatives_of_each_datum() -> None:
    """What the directions are worth: derivatives of single data, by other factors."""
    A, g = factor(), flat(gradient())
    model = perceptron()
    X, y = images()
    E = EFLinearOperator(model, LOSS, list(model.parameters()), [(X, y)]).factor()
    found = A.directions(g, 4)
    slopes = E.V.T @ found.vectors * len(y) ** 0.5
    assert error(slopes.mean(0), found.slopes) <= 1e-12
    curvatures = (A.V.T @ found.vectors).square().view(len(y), 3, 4).sum(1)
    assert error(curvatures.sum(0), found.values) <= 1e-12
    for n in (0, 4):
        loss = LOSS(model(X[n : n + 1]), y[n : n + 1])
        one = flat(list(torch.autograd.grad(loss, list(model.parameters()))))
        assert error(slopes[n], found.vectors.T @ one) <= 1e-12


@pytest.mark.parametrize(
    ("damping", "kind", "message"),
    [
        (0.0, ValueError, "positive damping"),
        ("x", TypeError, "damping as a number"),
        (torch.ones(3), ValueError, "each of 2 directions"),
        (torch.tensor([1.0, 0.0]), ValueError, "positive damping for each"),
    ],
)
def test_bad_damping(damping: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        factor().directions(gradient(), 2).newton_step(damping)  # type: ignore[arg-type]


def test_bad_gradient() -> None:
    A = factor()
    with pytest.raises(ValueError, match="one gradient, got a matrix"):
        A.newton_step(torch.ones(A.shape[0], 2).double(), 1.0)
    with pytest.raises(ValueError, match="Expected shape"):
        A.directions(torch.ones(3).double())
    with pytest.raises(TypeError, match="dtype"):
        A.directions(torch.ones(A.shape[0]))
