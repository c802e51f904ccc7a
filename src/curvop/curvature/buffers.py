"""Buffers that a forward pass may write (running statistics, counters), left as found."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def copied_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let the modules see copies of their buffers, so that nothing written stays.

    The originals are put aside, not written back: autograd may have saved them.
    """
    kept = [(m, dict(m._buffers)) for module in modules for m in module.modules()]
    try:
        for m, buffers in kept:
            for name, buffer in buffers.items():
                if buffer is not None:
                    m._buffers[name] = buffer.clone()
        yield
    finally:
        for m, buffers in kept:
            for name, buffer in buffers.items():
                m._buffers[name] = buffer


def modules_in(function: Callable[..., Any]) -> tuple[nn.Module, ...]:
    """The modules that a model function refers to, as far as Python can tell."""
    if isinstance(function, nn.Module):
        return (function,)
    if isinstance(function, functools.partial):
        parts = [*function.args, *function.keywords.values(), function.func]
        inner = [p for p in parts[:-1] if isinstance(p, nn.Module)]
        return (*inner, *modules_in(function.func))
    found = [getattr(function, "__self__", None)]
    try:
        scope = inspect.getclosurevars(inspect.unwrap(function))
        found += [*scope.nonlocals.values(), *scope.globals.values()]
    except (TypeError, ValueError):
        pass  # a builtin, or a callable object: only what it is bound to
    return tuple({id(m): m for m in found if isinstance(m, nn.Module)}.values())
