"""Models that a preflight must see through."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from curvop.inspection import Preflight, preflight
from tests.cases.problem import Problem, normal, seeded
from tests.sweep.custom import Cube

PATIENCE = 300.0  # no test depends on how busy the machine is


class RightCube(Cube):
    """All right."""


class WrongCube(RightCube):
    """The gradient is right, its derivative is not: no error anywhere, symmetric."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * g


class OnceCube(RightCube):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class WrongTangent(torch.autograd.Function):
    """In the new style; forward mode is off by a factor, reverse mode is right."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x**2 * t


class Through(torch.autograd.Function):
    """A step, with the gradient of the identity: meant to be no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Around(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 2)
        self.function = function

    def forward(self, X: Tensor) -> Tensor:
        return self.last(self.function(self.first(X)))


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, X: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this\nand a second line")


class Detached(nn.Module):
    """Predicts with what autograd cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, X: Tensor) -> Tensor:
        return self.linear(X).detach()


class InPlace(nn.Module):
    """Breaks every derivative: the graph needs what it overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, X: Tensor) -> Tensor:
        h = self.linear(X)
        out = h.exp()
        out.mul_(2)
        return out


def cube(x: Tensor) -> Tensor:
    return x**3


def around(function: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    apply = function.apply if isinstance(function, type) else function
    return seeded(lambda: Around(apply), dtype)


def data(dtype: torch.dtype = torch.float32, n: int = 10) -> list[tuple[Tensor, Tensor]]:
    X, y = normal(dtype, n, 3), normal(dtype, n, 2, seed=2)
    return [(X[:6], y[:6]), (X[6:], y[6:])]


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    build = lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))  # noqa: E731
    return seeded(build, dtype)


def of(model: Any, batches: Any = None, loss: Any = None, **options: Any) -> Preflight:
    """A preflight of a model on the data of this file."""
    batches = data() if batches is None else batches
    loss = nn.MSELoss() if loss is None else loss
    options = {"max_seconds": PATIENCE, **options}
    return preflight(model, loss, list(model.parameters()), batches, **options)


def looked_at(
    model: Any, batches: Any = None, loss: Any = None, **options: Any
) -> Preflight:
    """The same without any trial: cautions and references only."""
    return of(model, batches, loss, **{"max_seconds": 1e-6, **options})


@functools.cache
def of_mlp() -> Preflight:
    return of(mlp())


def of_problem(problem: Problem, **options: Any) -> Preflight:
    return preflight(
        problem.model,
        problem.loss,
        problem.params,
        problem.data,
        **{"max_seconds": PATIENCE, **problem.options, **options},
    )


def cautions(found: Preflight) -> dict[str, str]:
    """What needs care, and how much."""
    return {c.what: c.severity for c in found.cautions}


def where(found: Preflight, what: str) -> tuple[str, ...]:
    (names,) = [c.where for c in found.cautions if what in c.what]
    return names
