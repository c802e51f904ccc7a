"""Functions with derivatives of the user's own: right, wrong, and missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .case import Case, functions


class Cube(Function):
    """All right, in the old form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class CubeNew(Function):
    """All right, in the new form, vectorised by torch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * t


class CubeWithVmap(CubeNew):
    """With a rule for vmap."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        return CubeWithVmap.apply(x), dims[0]


class WrongForwardMode(CubeNew):
    """Forward mode is not that of the values."""

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x**2 * t


class WithoutForwardMode(Function):
    """The new form, reverse mode only."""

    generate_vmap_rule = True
    forward = staticmethod(CubeNew.forward)
    setup_context = staticmethod(CubeNew.setup_context)
    backward = staticmethod(CubeNew.backward)


class KeptUntracked(Function):
    """The slope is computed forward and kept as a constant: no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 3 * x**2
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return ctx.slope * g


class SavedUntracked(Function):
    """The same, saved as torch says, but no input or output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(3 * x**2)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * g


class OnTheContext(Function):
    """The input is kept as an attribute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.x**2 * g


class Once(Function):
    """Says itself that there is no second derivative."""

    forward = staticmethod(Cube.forward)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class WithNumPy(Function):
    """Computed by NumPy, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(numpy.power(x.detach().numpy(), 3))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2) * g


class WithoutGraph(Function):
    """Its backward switches gradients off."""

    forward = staticmethod(Cube.forward)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return 3 * x**2 * g


class OfData(Function):
    """Looks at the values of what it is handed."""

    forward = staticmethod(Cube.forward)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0].data ** 2 * g


class Checked(Function):
    """Branches on numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.is_negative = bool(x.sum() < 0)
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * (g if ctx.is_negative else 1 * g)


FUNCTIONS: dict[str, type[Function]] = {
    f"custom {c.__name__}": c
    for c in (
        Cube,
        CubeNew,
        CubeWithVmap,
        WrongForwardMode,
        WithoutForwardMode,
        KeptUntracked,
        SavedUntracked,
        OnTheContext,
        Once,
        WithNumPy,
        WithoutGraph,
        OfData,
        Checked,
    )
}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from functions(4, {name: c.apply for name, c in FUNCTIONS.items()})
    yield from functions(
        4,
        {
            "hook on a tensor": lambda x: _hooked(x * x),
            "NumPy inside": lambda x: x.sin() * torch.from_numpy(numpy.ones(4)),
            "loop over numbers": lambda x: sum(x**k for k in range(1, 4)),
            "branch on a number": lambda x: x.sin() if x.sum().item() > 0 else x.cos(),
            "detached factor": lambda x: x.sin() * torch.ones_like(x.detach()),
            "under no_grad beside": _beside,
        },
    )


def _hooked(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda g: 1.0 * g)
    return x


def _beside(x: Tensor) -> Tensor:
    with torch.no_grad():
        (x * 2).sum()
    return x.sin()
