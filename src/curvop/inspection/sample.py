"""A few data of the first batch, and what is known of the others without a pass."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from curvop.inspection.problem import Problem
from curvop.risk import Batch, Data, Parameters, nested, preserved, takes_weight


@dataclass(frozen=True)
class Sample:
    """What the ways to differentiate are tried on; ``None`` is what cannot be told."""

    batch: Batch  # a few data, on the device of the parameters
    size: int | None  # how many
    first: Batch  # the whole batch that they were taken from
    first_size: int | None
    second: Batch | None  # the batch after it, if it is of the same shape
    num_data: int | None  # in all, as is the next
    num_batches: int | None
    load_seconds: float  # what it takes to load a batch
    is_one_shot: bool  # the data can be passed over only once
    is_uneven: bool  # batches are known to differ in size
    is_changing: bool  # a second pass began with other data

    def whole(self) -> Sample:
        """The first batch as it is, where a few of its data do not do."""
        return replace(self, batch=self.first, size=self.first_size)


def take(
    problem: Problem, parameters: Parameters, size: int, num_data: int | None
) -> Sample:
    """The first data.

    Args:
        problem: What the user gave.
        parameters: Where the sample goes.
        size: Number of data to take at most.
        num_data: Number of data in all, if the user tells.

    Raises:
        TypeError: If the data is no iterable of pairs.
        ValueError: If it is empty, or ``num_data`` is no count.
    """
    source, device = problem.data, parameters.device
    is_one_shot = isinstance(source, Iterator)
    # the operators refuse one; a look at one batch tells the rest
    data = Data(
        list(itertools.islice(source, 1)) if is_one_shot else source,
        device,
        None if is_one_shot else num_data,
        problem.batch_size_fn,
        unpack=problem.unpack,
        takes_weight=takes_weight(problem.loss),
        params=parameters.tensors,
    )
    with preserved(device, *data.generators):
        first, second, seconds = _begin(data)
        is_changing = _changes(source, data, first)
    first_size = _size(data, first)
    rows = _rows(first)
    batch = cut(first, size) if rows is not None and rows > size else first
    known, is_uneven = (None, False) if is_one_shot else _count(source, data, first_size)
    return Sample(
        batch,
        _size(data, batch),
        first,
        first_size,
        second if second is not None and _shapes(first) == _shapes(second) else None,
        num_data if num_data is not None else known,
        None if is_one_shot else data.num_batches,
        seconds,
        is_one_shot,
        is_uneven,
        is_changing,
    )


def cut(batch: Batch, rows: int) -> Batch:
    """The first rows of each tensor."""
    X, y = (nested.map_tensors(lambda t: t[:rows].clone(), part) for part in batch)
    return X, y


def _begin(data: Data) -> tuple[Batch, Batch | None, float]:
    """The first two batches, and the seconds that the second one takes to load."""
    batches = data.batches("preflight")
    first = next(batches)
    start = time.perf_counter()
    second = None
    if data.num_batches != 1:  # num_data would be compared with one batch
        second = next(batches, None)
    return first, second, time.perf_counter() - start


def _shapes(batch: Batch) -> object:
    shapes = [(t.shape, t.dtype) for t in nested.tensors(batch)]
    return nested.structure(batch), shapes


def _changes(source: Any, data: Data, first: Batch) -> bool:
    """Whether data that comes in one order is another the second time."""
    if not isinstance(source, DataLoader) or not isinstance(
        source.sampler, SequentialSampler
    ):
        return False
    second = next(iter(data.batches("preflight")))
    pairs = zip(nested.tensors(first), nested.tensors(second), strict=False)
    return any(a.shape != b.shape or not _same(a, b) for a, b in pairs)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a, b) or torch.allclose(a, b, equal_nan=True))


def _rows(batch: Batch) -> int | None:
    """The leading axis that all tensors of a batch share, if they do."""
    sizes = {t.shape[0] if t.ndim else None for t in nested.tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None


def _size(data: Data, batch: Batch) -> int | None:
    try:
        return data.batch_size(*batch)
    except Exception:
        return None


def _count(source: Any, data: Data, first: int | None) -> tuple[int | None, bool]:
    """Number of data without loading them, and whether batches differ in size."""
    if isinstance(source, list | tuple):
        sizes = [_size(data, data.pair(batch)) for batch in source]
        known = [n for n in sizes if n is not None]
        is_complete = len(known) == len(source)
        return sum(known) if is_complete else None, len(set(known)) > 1
    if isinstance(source, DataLoader) and source.batch_size is not None:
        return _count_of_loader(source)
    if first is not None and data.num_batches is not None:
        return first * data.num_batches, False
    return None, False


def _count_of_loader(loader: DataLoader[Any]) -> tuple[int | None, bool]:
    try:
        n = len(loader.sampler)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None, False
    assert loader.batch_size is not None
    rest = n % loader.batch_size
    if loader.drop_last:
        return n - rest, False
    return n, bool(rest) and n > loader.batch_size
