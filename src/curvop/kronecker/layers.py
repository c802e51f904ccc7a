"""The layers of a model as far as calls have shown them, each with its sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor

from curvop.kronecker.calls import LayerCall, MatrixCall, TableCall
from curvop.kronecker.sums import LayerSums

Key = tuple[int | None, int | None, str]  # weight, bias, kind of the layer
Make = Callable[[Key, Sequence[LayerCall]], LayerSums[Any] | None]

# The kind of a layer that is both an embedding and a linear layer.
TIED = "tied"
_KINDS = {MatrixCall.__name__, TableCall.__name__}


@final
class Layers:
    """Sums for each layer: for parameters that are always used together.

    Attributes:
        keeps_inputs: Whether backward passes need what has gone into the layers.

    Args:
        make: Sums for a layer, from its calls in a batch; ``None`` if nothing is to be
            summed.
    """

    def __init__(self, make: Make, *, keeps_inputs: bool) -> None:
        self._make = make
        self.keeps_inputs = keeps_inputs
        self.sums: dict[Key, LayerSums[Any] | None] = {}
        self._of: dict[int, list[Key]] = {}
        self._calls: dict[Key, list[Any]] = {}

    def start(self, calls: Sequence[LayerCall]) -> None:
        """Before the backward passes of a batch, with all calls of the forward pass."""
        self._calls, self._of = defaultdict(list), {}
        together = _together(calls)
        for call in calls:
            keys = together[call.index]
            self._of[call.index] = keys
            for key in keys:
                self._calls[key].append(call)
        for key, mine in self._calls.items():
            if key not in self.sums:
                self.sums[key] = self._make(key, mine)
            if (sums := self.sums[key]) is not None:
                sums.start(mine)

    def receive(self, call: LayerCall, g: Tensor) -> None:
        """A gradient has arrived."""
        for key in self._of[call.index]:
            if (sums := self.sums[key]) is not None:
                sums.receive(call, g)

    def complete(self) -> None:
        """After all batches."""
        for sums in self.sums.values():
            if sums is not None:
                sums.complete()

    def end_column(self) -> None:
        """A backward pass has ended."""
        for key in self._calls:
            if (sums := self.sums[key]) is not None:
                sums.end_column()


def _together(calls: Sequence[LayerCall]) -> dict[int, list[Key]]:
    """For each call, the layers that it belongs to.

    Weight and bias are one layer where they are never used apart; otherwise each is one.
    """
    kinds: dict[int | None, set[str]] = defaultdict(set)
    with_weight: dict[int, set[int | None]] = defaultdict(set)
    with_bias: dict[int, set[int | None]] = defaultdict(set)
    for call in calls:
        kinds[call.weight].add(type(call).__name__)
        if call.weight is not None:
            with_weight[call.weight].add(call.bias)
        if call.bias is not None:
            with_bias[call.bias].add(call.weight)
    found: dict[int, list[Key]] = {}
    for call in calls:
        w, b, kind = call.weight, call.bias, type(call).__name__
        is_tied = w is not None and kinds[w] == _KINDS
        if is_tied:
            found[call.index] = [(w, None, TIED)]
            found[call.index] += [] if b is None else [(None, b, kind)]
        elif w is None or b is None or len(with_weight[w]) == len(with_bias[b]) == 1:
            found[call.index] = [(w, b, kind)]
        else:
            found[call.index] = [(w, None, kind), (None, b, kind)]
    return found
