"""A differentiable operation between two linear layers, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases.problem import Problem
from tests.comparing import random

N = 3  # data
Op = Callable[[Tensor], Any]
Build = Callable[[], Problem]


@dataclass(frozen=True)
class Case:
    """One point of the sweep.

    Attributes:
        name: What is swept, as one writes it, and a note where there are several.
        build: Makes the problem.
        reference: Makes one that is smooth, with the same values and derivatives, where
            those are autograd's convention at a kink.
    """

    name: str
    build: Build
    reference: Build | None = None


class Between(nn.Module):
    """``Linear -> tanh -> op -> Linear``."""

    def __init__(self, op: Op, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(2, width)
        self.op = op
        with torch.no_grad():
            out = flat(self.op(torch.linspace(-0.9, 0.8, N * width).view(N, -1)))
        self.last = nn.Linear(out.shape[1], 2)

    def forward(self, X: Tensor) -> Tensor:
        return self.last(flat(self.op(self.first(X).tanh())))


class Shaped(nn.Module):
    """A layer that takes more axes than one."""

    def __init__(self, layer: Op, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, X: Tensor) -> Any:
        return self.layer(X.reshape(-1, *self.shape))


def flat(out: Any) -> Tensor:
    """What an operation returns as one row for each datum: ``[N, ...]``.

    What does not belong to single data belongs to all of them.
    """
    rows = []
    for part in parts_of(out):
        if part.is_complex():
            part = torch.view_as_real(part.resolve_conj())
        elif not part.is_floating_point():
            continue
        each = part.ndim > 0 and part.shape[0] == N
        rows.append(part.reshape(N, -1) if each else part.reshape(1, -1).expand(N, -1))
    return torch.cat(rows, 1)


def parts_of(out: Any) -> list[Tensor]:
    """The tensors of a nest."""
    if isinstance(out, Tensor):
        return [out]
    return [] if out is None else [part for o in out for part in parts_of(o)]


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    """The model in double precision, with random parameters, whatever its author drew."""
    found = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build()
    finally:
        torch.set_default_dtype(found)
    with torch.no_grad():
        for seed, p in enumerate(model.parameters()):
            p.add_(0.5 * random(*p.shape, seed=seed + 100))
    return model


def between(op: Callable[[], Op], width: int, zeros: int = 0) -> Problem:
    """The network around an operation, with so many of its inputs exactly zero."""
    model = drawn(lambda: Between(op(), width))
    with torch.no_grad():
        model.first.weight[:zeros] = 0
        model.first.bias[:zeros] = 0
    X, y = random(N, 2, seed=1), random(N, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y, cuts=(N,))


def functions(width: int, ops: Mapping[str, Op]) -> Iterator[Case]:
    """A case for each function of ``[N, width]``."""
    for name, op in ops.items():
        yield Case(name, lambda op=op: between(lambda: op, width))


def layers(*shape: int, **makers: Callable[[], Op]) -> Iterator[Case]:
    """A case for each module that takes ``[N, *shape]``; after ``_`` comes a note."""
    width = torch.Size(shape).numel()
    for name, make in makers.items():

        def op(make: Callable[[], Op] = make) -> Op:
            return Shaped(make(), *shape)

        title = f"nn.{name}".replace("_", " ", 1)
        yield Case(title, lambda op=op: between(op, width))


def points(width: int, zeros: int, ops: Mapping[str, Op | tuple[Op, Op]]) -> Iterator[Case]:
    """A case for each function, at inputs of which the first are zero.

    With a kink there, ``(function, smooth one with its values and derivatives)``.
    """
    for name, op in ops.items():
        made, smooth = op if isinstance(op, tuple) else (op, None)
        yield Case(
            name,
            lambda op=made: between(lambda: op, width, zeros),
            None if smooth is None else lambda op=smooth: between(lambda: op, width, zeros),
        )
