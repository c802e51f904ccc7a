"""Modules in eval mode for the time of a context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation(modules: Iterable[nn.Module], *, wanted: bool = True) -> Iterator[None]:
    """Set the flag of each submodule, and give each its own back.

    Not by ``train()`` and ``eval()``, which modules override to keep parts as they are.
    """
    flags = [(m, m.training) for module in modules for m in module.modules()] * wanted
    try:
        for m, _ in flags:
            m.training = False
        yield
    finally:
        for m, training in flags:
            m.training = training
