"""The truths of the cases, confirmed by central differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.cases.curvature import MODELS, Model, dense
from tests.cases.problem import Problem
from tests.cases.truth import gradient
from tests.comparing import error, random


def _change(problem: Problem, of: Callable[[], Tensor], v: Tensor) -> Tensor:
    """Central difference of ``of()`` along ``v``, of fourth order."""
    sizes = [p.numel() for p in problem.tensors]
    step = 1e-3 / float(v.norm())

    def moved(t: float) -> Tensor:
        for p, part in zip(problem.tensors, v.split(sizes), strict=True):
            p.data.add_(t * step * part.view_as(p))
        try:
            return of().detach()
        finally:
            for p, part in zip(problem.tensors, v.split(sizes), strict=True):
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
        change = _change(problem, slope, v)
    assert error(change, dense(model.build, "hessian") @ v) <= 1e-7


@pytest.mark.parametrize(
    "model", [m for m in MODELS if "jacobian" in m.matrices], ids=lambda m: m.name
)
def test_jacobian_is_the_change_of_the_prediction(model: Model) -> None:
    problem = model.build(torch.float64)
    v = _direction(model, problem)
    change = _change(problem, lambda: problem.predict().flatten(), v)
    assert error(change, dense(model.build, "jacobian") @ v) <= 1e-7
