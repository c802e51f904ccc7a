"""A module called with other tensors in place of its own.

A *mirror* is a copy of the module tree made for one call: the user's module is not changed,
so that other threads may use it meanwhile. Where a copy is impossible, because something
other than its parent refers to a module, tensors are put into the user's own module during
the call, and threads take turns.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

Slot = tuple[dict[str, Any], str]  # where a module has a tensor: its table and the key

# Held while the user's own objects are changed, and in forward mode, of which torch has one
# level for all threads. One lock for both, so that there is no deadlock.
TURN = threading.RLock()
_TABLES = ("_parameters", "_buffers", "_modules")
_REMADE = ("_flat_weights", "_flat_weight_refs")  # by recurrent layers, at each call


def mirrored(
    module: nn.Module,
    parameter: Callable[[int, str, Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    attribute: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """A copy of the module tree with other tensors; everything else is shared.

    Does what ``torch.func.functional_call`` does, but not to the user's module. Takes a
    microsecond a module.

    Args:
        module: The root.
        parameter: ``(id of the module, key, parameter) ->`` what takes its place.
        other: What takes the place of a buffer.
        attribute: What takes the place of a tensor that is a plain attribute.
    """
    copies: dict[int, nn.Module] = {}

    def copy_of(m: nn.Module) -> nn.Module:
        if id(m) in copies:
            return copies[id(m)]
        if _is_bare(m):
            return m
        new = copies[id(m)] = object.__new__(type(m))
        state = m.__dict__.copy()
        state.pop("_compiled_call_impl", None)  # by module.compile(): calls the original
        state["_parameters"] = {
            key: None if p is None else parameter(id(m), key, p)
            for key, p in m._parameters.items()
        }
        state["_buffers"] = {
            key: None if b is None else other(b) for key, b in m._buffers.items()
        }
        state["_modules"] = {
            key: None if c is None else copy_of(c) for key, c in m._modules.items()
        }
        if attribute is not None:
            for key, t in m.__dict__.items():
                if isinstance(t, Tensor):
                    state[key] = attribute(t)
        object.__setattr__(new, "__dict__", state)
        return new

    return copy_of(module)


def _is_bare(m: nn.Module) -> bool:
    """Whether a module has no tensors and writes nothing, as torch's activations."""
    is_empty = not (m._parameters or m._buffers or m._modules)
    return is_empty and type(m).__module__.startswith("torch.nn.modules.")


def can_be_mirrored(module: nn.Module) -> bool:
    """Whether each part of the tree is referred to by its parent only.

    A reference by a method of another module, a list of layers, or a hook that closes over
    a layer would lead from the copy to the original.
    """
    inside: set[int] = set()
    for m in module.modules():
        if type(m).__new__ is not object.__new__ or hasattr(m, "_c"):
            return False  # a scripted module does not compute with its attributes
        tensors = (*m._parameters.values(), *m._buffers.values())
        inside |= {id(m), *(id(t) for t in tensors if t is not None)}
    for m in module.modules():
        held = (v for key, v in m.__dict__.items() if key not in (*_TABLES, *_REMADE))
        if any(id(x) in inside for x in _reached(v for v in held if _may_refer(v))):
            return False
    return True


def _may_refer(value: Any) -> bool:
    if isinstance(value, bool | int | float | str | bytes | type | None):
        return False
    return not (isinstance(value, list | tuple | Mapping) and not value)


def _reached(starts: Iterable[Any]) -> Iterator[Any]:
    """Objects that some objects refer to, in a few steps, and these themselves."""
    seen: dict[int, Any] = {}  # holds what it names: an id is only good for a lifetime
    reached = list(starts)
    for _ in range(5):
        reached = [x for x in reached if id(x) not in seen]
        seen.update((id(x), x) for x in reached)
        yield from reached
        reached = [y for x in reached for y in _references(x)]


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
    """Put tensors into slots; the former ones are restored, also after an exception."""
    with TURN if slots else nullcontext():
        originals = [table[key] for table, key in slots]
        try:
            for (table, key), t in zip(slots, tensors, strict=True):
                table[key] = t
            yield
        finally:
            for (table, key), t in zip(slots, originals, strict=True):
                table[key] = t


@contextmanager
def copied(
    slots: Sequence[Slot], copy: Callable[[Tensor], Tensor] = Tensor.clone
) -> Iterator[None]:
    """Put copies into slots, so that what a forward pass writes is discarded."""
    with (
        TURN if slots else nullcontext(),
        substituted(slots, [copy(table[key]) for table, key in slots]),
    ):
        yield


def modules_in(function: Callable[..., Any]) -> tuple[nn.Module, ...]:
    """The modules that a model function refers to, as far as they can be found.

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


def tensors_in(function: Callable[..., Any]) -> dict[int, Tensor]:
    """The tensors that a function refers to, by identity; of modules, their parameters."""
    found: dict[int, Tensor] = {}
    for x in _reached([function]):
        if isinstance(x, nn.Module):
            found.update((id(p), p) for p in x.parameters())
        elif isinstance(x, Tensor):
            found[id(x)] = x
    return found


def _references(x: Any) -> Sequence[Any]:
    """The objects that a callable, container or object of the user refers to."""
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    if inspect.ismethod(x):
        return [x.__self__, x.__func__]
    if isinstance(x, list | tuple | set | frozenset | Mapping):
        entries = x.values() if isinstance(x, Mapping) else x
        return list(entries) if len(x) <= 1000 else []  # data, not layers
    if isinstance(x, type | ModuleType) or _origin(x) in ("torch", "builtins"):
        return []
    if inspect.isfunction(x):
        return _scope(x)
    call = inspect.getattr_static(type(x), "__call__", None)
    return [*getattr(x, "__dict__", {}).values(), call]


def _scope(function: FunctionType) -> list[Any]:
    """The objects in a function's closure, globals and defaults."""
    function = inspect.unwrap(function)
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable that is not bound yet
            values.append(cell.cell_contents)
    names = _names(function.__code__)
    return values + [v for k, v in function.__globals__.items() if k in names]


def _names(code: CodeType) -> set[str]:
    """The names that code looks up, also within its comprehensions."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _origin(x: Any) -> str:
    """The package of a function, or of the class of an object."""
    name = x.__module__ if inspect.isfunction(x) else type(x).__module__
    return str(name).split(".")[0]
