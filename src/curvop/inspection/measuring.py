"""What a computation costs: seconds, and bytes of the tensors that it makes."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ENOUGH_SECONDS = 0.03  # of repetitions
MOST = 20


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The least time of a few repetitions, after one to warm up.

    Disturbances only make a run longer.
    """
    first = _timed(run, device)
    readings: list[float] = []
    while sum(readings) < ENOUGH_SECONDS and len(readings) < MOST:
        readings.append(_timed(run, device))
    return min(first, *readings)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes_of(run: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once that a run makes, its result included.

    Tensors are counted as they are made and freed, on any device; the workspace within a
    kernel is not. No statistics of an allocator are reset.
    """
    alive = _Alive()
    with alive:
        result = run()
    del result
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows the storages that are made within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: dict[int, object] = {}  # address -> reference, None if made before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._known.setdefault(storage._cdata, None)
        out = func(*args, **kwargs)
        for storage in _storages(out):
            if storage._cdata not in self._known:
                self._follow(storage)
        self.peak = max(self.peak, self._now)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        where, nbytes = storage._cdata, storage.nbytes()

        def freed(_: object) -> None:
            self._known.pop(where, None)
            self._now -= nbytes

        self._known[where] = weakref.ref(storage, freed)
        self._now += nbytes


def _storages(x: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(x):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf.untyped_storage()
