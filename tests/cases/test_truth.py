"""The truths of the cases, confirmed by central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.cases.curvature import MODELS, Model, dense
from tests.cases.problem import Problem, flat_terms, leaves_of, refilled
from tests.cases.truth import gradient
from tests.comparing import error, random


def _change(at: Sequence[Tensor], of: Callable[[], Tensor], v: Tensor) -> Tensor:
    """Central difference of ``of()`` at these tensors along ``v``, of fourth order."""
    sizes = [p.numel() for p in at]
    step = 1e-3 / float(v.norm())

    def moved(t: float) -> Tensor:
        for p, part in zip(at, v.split(sizes), strict=True):
            p.data.add_(t * step * part.view_as(p))
        try:
            return of().detach()
        finally:
            for p, part in zip(at, v.split(sizes), strict=True):
                p.data.sub_(t * step * part.view_as(p))

    near, far = moved(1) - moved(-1), moved(2) - moved(-2)
    return (8 * near - far) / (12 * step)


def _direction(model: Model, problem: Problem) -> Tensor:
    v = random(sum(p.numel() for p in problem.tensors))
    if model.name == "embedding":
        v[: problem.tensors[0].shape[1]] = 0  # the padding row: constant by decree
    return v


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_hessian_is_the_change_of_the_gradient(model: Model) -> None:
    problem = model.build(torch.float64)
    for p in problem.tensors:
        p.requires_grad_(True)

    def slope() -> Tensor:
        loss = problem.loss(problem.predict(), problem.y)
        return gradient(loss, problem.tensors)

    v = _direction(model, problem)
    with sdpa_kernel(SDPBackend.MATH):
        change = _change(problem.tensors, slope, v)
    assert error(change, dense(model.build, "hessian") @ v) <= 1e-7


@pytest.mark.parametrize(
    "model", [m for m in MODELS if "jacobian" in m.matrices], ids=lambda m: m.name
)
def test_jacobian_is_the_change_of_the_prediction(model: Model) -> None:
    problem = model.build(torch.float64)
    v = _direction(model, problem)
    change = _change(problem.tensors, lambda: problem.predict().flatten(), v)
    assert error(change, dense(model.build, "jacobian") @ v) <= 1e-7


def _pulled(outputs: Tensor, w: Tensor, problem: Problem) -> Tensor:
    """``Jᵀ w``: a first derivative."""
    return gradient(outputs.flatten() @ w, problem.tensors, keep=False)


def _prediction(problem: Problem) -> Tensor:
    return torch.cat([part.flatten() for part in leaves_of(problem.predict())])


@pytest.mark.parametrize(
    "model", [m for m in MODELS if "ggn" in m.matrices], ids=lambda m: m.name
)
def test_ggn_is_the_change_of_prediction_and_slope(model: Model) -> None:
    """``Jᵀ`` times the change of the loss's slope along the change of the prediction."""
    problem = model.build(torch.float64)
    for p in problem.tensors:
        p.requires_grad_(True)
    v = _direction(model, problem)
    with sdpa_kernel(SDPBackend.MATH):
        u = _change(problem.tensors, lambda: _prediction(problem), v)
        prediction = problem.predict()
        parts = [part.detach().requires_grad_() for part in leaves_of(prediction)]

        def slope() -> Tensor:
            return gradient(problem.loss(refilled(prediction, parts), problem.y), parts)

        product = _pulled(_prediction(problem), _change(parts, slope, u), problem)
    assert error(product, dense(model.build, "ggn") @ v) <= 1e-7


@pytest.mark.parametrize(
    "model", [m for m in MODELS if "ef-term" in m.matrices], ids=lambda m: m.name
)
def test_empirical_fisher_is_the_change_of_the_terms(model: Model) -> None:
    """``Σ gₙ gₙᵀ v``: the change of the terms, times their gradients."""
    problem = model.build(torch.float64)
    for p in problem.tensors:
        p.requires_grad_(True)

    def terms() -> Tensor:
        return flat_terms(problem.loss)(problem.predict(), problem.y).flatten()

    v = _direction(model, problem)
    with sdpa_kernel(SDPBackend.MATH):
        change = _change(problem.tensors, terms, v)
        Z = terms().sum() / problem.loss(problem.predict(), problem.y)
        product = _pulled(terms(), change, problem) / Z
    assert error(product, dense(model.build, "ef-term") @ v) <= 1e-7
