"""Small mini-batches put together: fewer passes through the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from curvop.operators.probing import differ
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
        group: list[Batch] = []
        rows, last = 0, None
        for batch in self._data.batches(what):
            n, kind = self._kind(batch)
            if group and (kind is None or kind != last or rows + n > self._most):
                yield from self._merged(group)
                group, rows = [], 0
            group.append(batch)
            rows, last = rows + n, kind
        if group:
            yield from self._merged(group)

    def _kind(self, batch: Batch) -> tuple[int, Any]:
        """Number of rows, and what must agree; ``None`` if a batch stays apart."""
        tensors = list(nested.tensors(batch))
        rows = {t.shape[0] if t.ndim else 0 for t in tensors}
        if self._data.batch_size_fn is not None or len(rows) != 1:
            return 0, None
        alike = tuple((t.shape[1:], t.dtype) for t in tensors)
        return rows.pop(), (nested.structure(batch), alike)

    def _merged(self, group: list[Batch]) -> Iterator[Batch]:
        if len(group) > 1:
            (together,) = merge(group, self._most)
            if self._is_verified or self._is_same(together[0], group[0][0]):
                yield together
                return
            self._most = 1  # from now on, too
        yield from group

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
