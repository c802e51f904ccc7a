"""Every model of the cases is left as it was found by products of all kinds."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.cases.curvature import MODELS, Model, operator
from tests.comparing import random

CASES = [
    pytest.param(model, matrix, id=f"{model.name}-{matrix}")
    for model in MODELS
    if isinstance(model.build(torch.float64).model, nn.Module)
    for matrix in ("hessian", "ggn", "jacobian")
    if matrix in model.matrices
]


def state(model: nn.Module) -> list[tuple[str, int, bool, bool, Tensor]]:
    """Which tensors there are, their flags, whether they have a gradient, and values."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        (name, id(t), t.requires_grad, t.grad is None, t.detach().clone())
        for name, t in tensors
    ]


@pytest.mark.parametrize("way", ["auto", "backpack"])
@pytest.mark.parametrize(("model", "matrix"), CASES)
def test_as_found(model: Model, matrix: str, way: str) -> None:
    problem = model.build(torch.float64)
    before, modes = state(problem.model), [m.training for m in problem.model.modules()]
    generator = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of falling back, which other tests look at
        A = operator(problem, matrix, differentiation=way)
        A @ random(A.shape[1], 2)
        A @ random(A.shape[1])
        random(A.shape[0]) @ A
    for was, now in zip(before, state(problem.model), strict=True):
        assert was[:-1] == now[:-1]
        assert torch.equal(was[-1], now[-1])
    assert modes == [m.training for m in problem.model.modules()]
    assert torch.equal(generator, torch.get_rng_state())
