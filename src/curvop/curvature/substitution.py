"""A module with other tensors in the place of its own, for the time of a call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Slot = tuple[dict[str, Any], str]  # where a module keeps a tensor: its table and the key


def parameter_slots(module: nn.Module) -> list[tuple[Slot, Tensor]]:
    """Every place in which the module keeps a parameter; a tied one has several."""
    return [
        ((m._parameters, key), p)
        for m in module.modules()
        for key, p in m._parameters.items()
        if p is not None
    ]


def buffer_slots(modules: Sequence[nn.Module]) -> list[Slot]:
    """Every place in which the modules keep a buffer."""
    return [
        (m._buffers, key)
        for module in modules
        for m in module.modules()
        for key, b in m._buffers.items()
        if b is not None
    ]


@contextmanager
def substituted(slots: Sequence[Slot], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put tensors into slots; what was there comes back, also after an exception.

    Does what ``torch.func.functional_call`` does, without its search by name at each
    call, which costs as much as the forward pass of a small network.
    """
    originals = [table[key] for table, key in slots]
    try:
        for (table, key), t in zip(slots, tensors, strict=True):
            table[key] = t
        yield
    finally:
        for (table, key), t in zip(slots, originals, strict=True):
            table[key] = t


@contextmanager
def copied(slots: Sequence[Slot]) -> Iterator[None]:
    """Put copies into slots, so that what a forward pass writes does not stay."""
    with substituted(slots, [table[key].clone() for table, key in slots]):
        yield


def modules_in(function: Callable[..., Any]) -> tuple[nn.Module, ...]:
    """The modules that a model function refers to, as far as Python can tell."""
    if isinstance(function, nn.Module):
        return (function,)
    if isinstance(function, functools.partial):
        given = [*function.args, *function.keywords.values()]
        inner = tuple(m for m in given if isinstance(m, nn.Module))
        return inner + modules_in(function.func)
    found = [getattr(function, "__self__", None)]
    try:
        scope = inspect.getclosurevars(inspect.unwrap(function))
        found += [*scope.nonlocals.values(), *scope.globals.values()]
    except (TypeError, ValueError):
        pass  # a builtin, or a callable object: only what it is bound to
    return tuple({id(m): m for m in found if isinstance(m, nn.Module)}.values())
