"""Evaluate a user's function: check its value, restore generators and buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from curvop.autograd import ComposedKernels, differentiable_kernels, kernels_for
from curvop.functional.composed_norms import ComposedNorms
from curvop.risk import buffer_slots, copied, modules_in, preserved


@contextmanager
def as_found(params: Sequence[Tensor], *functions: Callable[..., Any]) -> Iterator[None]:
    """Context that restores random generators and buffers.

    Buffers are those of the modules that the functions refer to. The backward pass must be
    within the context, too: activation checkpointing calls modules again.

    Args:
        params: The generators of their devices are restored.
        *functions: Modules or functions that will be called.
    """
    modules = [m for function in functions for m in modules_in(function)]
    with ExitStack() as stack:
        for device in {p.device for p in params}:
            stack.enter_context(preserved(device))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(copied(buffer_slots(modules)))
        yield


@contextmanager
def differentiable_twice(
    params: Sequence[Tensor], *functions: Callable[..., Any], again: bool = False
) -> Iterator[None]:
    """As :func:`as_found`, with kernels that have a double backward.

    Args:
        params: The generators of their devices are restored.
        *functions: Modules or functions that will be called.
        again: Whether the result will be differentiated, too.
    """
    modules = [m for function in functions for m in modules_in(function)]
    with (
        as_found(params, *modules),
        differentiable_kernels(),
        kernels_for(modules)(),
        ComposedKernels(),
        ComposedNorms() if again else nullcontext(),
    ):
        yield


def evaluate(func: Callable[[], Any]) -> Tensor:
    """The value of a closure, checked to be a real scalar that can be differentiated.

    Raises:
        TypeError: If it is not a real floating-point tensor.
        ValueError: If it is not a finite scalar, or depends on no tensor.
    """
    value = scalar(func())
    if not value.requires_grad:
        # zeros would be right for a constant, but it is nearly always a mistake
        raise ValueError(
            "Expected func to return a tensor that depends on params, got one without a "
            "graph. Compute it inside func, without .detach(), .item() or no_grad."
        )
    return value


def scalar(value: Any) -> Tensor:
    """What a function returned, checked to be a real scalar.

    Raises:
        TypeError: If it is not a real floating-point tensor.
        ValueError: If it is not a finite scalar.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"Expected a real floating-point tensor as the function's value, got {got}."
        )
    if value.numel() != 1:
        raise ValueError(
            f"Expected a scalar as the function's value, got shape {tuple(value.shape)}. "
            "Reduce it with .sum(), or a loss with reduction='mean' or 'sum'."
        )
    if not value.isfinite():
        raise ValueError(
            "Expected a finite value of the function, got "
            f"{float(value.detach())}. It has no derivatives there: check the parameters "
            "and the data."
        )
    return value.reshape(())
