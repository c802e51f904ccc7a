"""Hessians of chain networks, and their inverses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from curvop import (
    ChainHessianLinearOperator,
    ChainInverseLinearOperator,
    LinearOperator,
)
from tests.cases import truth
from tests.cases.case import Case
from tests.cases.problem import Problem, classes, cross_entropy, normal, seeded

DAMPING = 0.5


def perceptron(dtype: torch.dtype) -> Problem:
    """Linear layers and activations, with fewer data than inputs, and one ignored."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 5),
            nn.Tanh(),
            nn.Linear(5, 3, bias=False),
            nn.GELU(),
            nn.Linear(3, 3),
        ),
        dtype,
    )
    params = dict(model.named_parameters())
    y = classes(3, 3, ignore=True)
    return Problem(model, params, cross_entropy(dtype), normal(dtype, 3, 4), y)


def convolution(dtype: torch.dtype) -> Problem:
    """Dense stages, a norm, and a layer that is frozen."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 2),
            nn.GroupNorm(1, 2),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(6, 3).requires_grad_(False),
            nn.Tanh(),
            nn.Linear(3, 2),
        ),
        dtype,
    )
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    X, y = normal(dtype, 4, 1, 4), normal(dtype, 4, 2, seed=3)
    return Problem(model, params, nn.MSELoss(), X, y)


def _hessian(build: Callable[[torch.dtype], Problem], curvature: str) -> Iterator[Case]:
    def operator(dtype: torch.dtype) -> ChainHessianLinearOperator:
        p = build(dtype)
        return ChainHessianLinearOperator(p.model, p.loss, p.X, p.y, curvature=curvature)

    def inverse(dtype: torch.dtype) -> LinearOperator:
        return operator(dtype).inverse(DAMPING)

    def dense() -> Tensor:
        H = truth.dense(build(torch.float64), curvature)
        return (H + H.T) / 2

    def dense_inverse() -> Tensor:
        H = dense()
        D = torch.linalg.inv(H + DAMPING * torch.eye(len(H), dtype=H.dtype))
        return (D + D.T) / 2

    name = f"chain-{build.__name__}-{curvature}"
    case = Case(name, ChainHessianLinearOperator, operator, dense)
    yield case
    yield replace(
        case,
        name=f"{name}-inverse",
        kind=ChainInverseLinearOperator,
        build=inverse,
        dense=dense_inverse,
    )


def cases() -> Iterator[Case]:
    """Hessian and Gauss-Newton matrix of each chain, and the inverses."""
    for build in (perceptron, convolution):
        for curvature in ("hessian", "ggn"):
            yield from _hessian(build, curvature)
