"""Chains to be inverted, and their Hessians by plain double backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvop import ChainHessianLinearOperator
from tests.cases import truth
from tests.cases.problem import Problem
from tests.comparing import random

LOSSES: dict[str, nn.Module] = {
    "mse": nn.MSELoss(),
    "cross-entropy": nn.CrossEntropyLoss(),
    "huber": nn.HuberLoss(),
}


def perceptron(
    L: int, w: int, activation: type[nn.Module] = nn.Tanh, *, bias: bool = True
) -> list[nn.Module]:
    """``L`` linear layers of width ``w`` with activations between them."""
    modules: list[nn.Module] = []
    for _ in range(L):
        modules += [nn.Linear(w, w, bias=bias), activation()]
    return modules[:-1]


def problem(
    build: Callable[[], Sequence[nn.Module]],
    n: int,
    *shape: int,
    loss: str | nn.Module = "mse",
    seed: int = 0,
) -> Problem:
    """The modules as a chain in double precision, with ``n`` inputs of this shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(*build()).double()
    X = random(n, *shape, seed=seed)
    with torch.no_grad():
        prediction = model(X)
    y: Any = random(*prediction.shape, seed=seed + 1)
    if loss == "cross-entropy":
        y = y.argmax(1)
    loss = LOSSES[loss] if isinstance(loss, str) else loss
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    return Problem(model, params, loss, X, y)


def mlp(L: int, w: int, n: int, *args: Any, seed: int = 0, **kwargs: Any) -> Problem:
    """A perceptron and ``n`` data; ``loss`` and what :func:`perceptron` takes."""
    loss = kwargs.pop("loss", "mse")
    return problem(lambda: perceptron(L, w, *args, **kwargs), n, w, loss=loss, seed=seed)


def chain(p: Problem, **options: Any) -> ChainHessianLinearOperator:
    """The operator of a problem."""
    return ChainHessianLinearOperator(p.model, p.loss, p.X, p.y, **options)


def dense(p: Problem, matrix: str = "hessian") -> Tensor:
    """The matrix of a problem, symmetric to the last bit."""
    H = truth.dense(p, matrix)
    return (H + H.T) / 2


def residual(H: Tensor, damping: float, x: Tensor, b: Tensor) -> float:
    """Of the worst column, relative."""
    columns = (H @ x + damping * x - b).norm(dim=0) / b.norm(dim=0)
    return float(columns.max())
