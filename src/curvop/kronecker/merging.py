"""Small mini-batches put together: fewer passes through the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from curvop.operators import differ
from curvop.risk import Batch, Data, Model, constant, merge, nested

# What goes into the layers may be so many numbers for data that are put together.
NUMBERS = 2**20
# Rows that share a pass at most: more are little quicker, and take more memory.
ROWS = 128


@final
class MergedBatches:
    """The batches of a data set, from the second on in groups.

    The first shows what a datum takes. Of the first group it is verified that the model
    predicts for its data what it predicts for them alone; otherwise (batch norm in train
    mode, a fixed batch size) batches stay apart.

    Args:
        model: ``(parameters, X) -> prediction``.
        params: Values of the parameters.
        data: The data.
    """

    def __init__(self, model: Model, params: Sequence[Tensor], data: Data) -> None:
        self._model, self._params, self._data = model, params, data
        self._most = 0  # data in a group
        self._is_verified = False

    def note(self, num_data: int, numbers: int) -> None:
        """What the layers of a batch have taken in."""
        fitting = NUMBERS * num_data // max(numbers, 1)
        if self._most == 0 and num_data:
            self._most = max(1, min(ROWS, fitting))

    def batches(self, what: str) -> Iterator[Batch]:
        """One pass over the data."""
        if self._data.batch_size_fn is not None:  # rows may not be data
            yield from self._data.batches(what)
            return
        waiting: list[Batch] = []
        rows = 0
        for batch in self._data.batches(what):
            n = self._data.batch_size(*batch)
            if waiting and rows + n > self._most:
                yield from self._merged(waiting)
                waiting, rows = [], 0
            waiting.append(batch)
            rows += n
        yield from self._merged(waiting)

    def _merged(self, batches: list[Batch]) -> list[Batch]:
        """Those of a kind together, once it is known that this changes nothing."""
        merged = merge(batches, self._most)
        first = next((i for i, m in enumerate(merged) if m is not batches[i]), None)
        if first is None or self._is_verified:
            return merged
        if self._is_same(merged[first][0], batches[first][0]):
            return merged
        self._most = 1  # from now on, too
        return batches

    def _is_same(self, merged: Any, alone: Any) -> bool:
        """Whether data are predicted as they are alone."""
        params = [constant(p) for p in self._params]
        try:
            with torch.no_grad():
                outputs = [
                    nested.differentiable(self._model(params, X)) for X in (merged, alone)
                ]
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        self._is_verified = all(
            m.shape[1:] == a.shape[1:] and not differ(m[: len(a)], a)
            for m, a in zip(*outputs, strict=True)
        )
        return self._is_verified
