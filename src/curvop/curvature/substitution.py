"""A module with other tensors in the place of its own, for the time of a call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
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
    """The modules that a model function refers to, as far as Python can tell.

    Looks into closures, partials, methods, containers and attributes of objects, a few
    steps deep.
    """
    found: dict[int, nn.Module] = {}
    seen: dict[int, Any] = {}  # holds what it names: an id is only good for a lifetime
    reached = [function]
    for _ in range(5):
        reached = [x for x in reached if id(x) not in seen]
        seen.update((id(x), x) for x in reached)
        found.update((id(x), x) for x in reached if isinstance(x, nn.Module))
        reached = [y for x in reached if id(x) not in found for y in _references(x)]
    return tuple(found.values())


def _references(x: Any) -> Sequence[Any]:
    """What a callable, container or object of the user refers to."""
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    if inspect.ismethod(x):
        return [x.__self__, x.__func__]
    if isinstance(x, list | tuple | Mapping):
        entries = x.values() if isinstance(x, Mapping) else x
        return list(entries) if len(x) <= 1000 else []  # data, not layers
    if isinstance(x, type | ModuleType) or _origin(x) in ("torch", "builtins"):
        return []
    if inspect.isfunction(x):
        try:
            scope = inspect.getclosurevars(inspect.unwrap(x))
        except ValueError:
            return []  # a variable of the closure is not bound yet
        return [*scope.nonlocals.values(), *scope.globals.values()]
    call = inspect.getattr_static(type(x), "__call__", None)
    return [*getattr(x, "__dict__", {}).values(), call]


def _origin(x: Any) -> str:
    """The package of a function, or of the class of an object."""
    name = x.__module__ if inspect.isfunction(x) else type(x).__module__
    return str(name).split(".")[0]
