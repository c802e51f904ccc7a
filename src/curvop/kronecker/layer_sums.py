"""The layers of a model as far as calls have shown them, each with its sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, final

from torch import Tensor

from curvop.kronecker.blocks import Block
from curvop.layers import Call

Key = tuple[int | None, int | None, str]  # weight, bias, form of the layer
Make = Callable[[Key, Sequence[Any]], "LayerSums[Any] | None"]
C = TypeVar("C", bound=Call)

# The form of a layer that is both an embedding and a linear layer.
TIED = "tied"


class LayerSums(ABC, Generic[C]):
    """Sums for parameters that are always used together.

    For each batch of ``N`` data: :meth:`start`; for each column of the loss's factor
    :meth:`receive`, as often as there are calls, and :meth:`end_column`.

    Attributes:
        tensors: The sums, which add up over batches and ranks.
    """

    tensors: dict[str, Tensor]

    def start(self, calls: Sequence[C], N: int) -> None:
        """Before the backward passes of a batch."""

    @abstractmethod
    def receive(self, call: C, g: Tensor, N: int) -> None:
        """The gradient of a column with respect to the output of a call."""

    def end_column(self) -> None:
        """All calls have received a column."""

    def complete(self) -> None:
        """All sums are there, also those to which nothing was added."""

    @abstractmethod
    def blocks(self, Z: Tensor) -> list[Block]:
        """The blocks, from the sums over all data and the divisor of the loss.

        The sums become the factors, in place.
        """


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
        self._started: list[Key] = []
        self._N = 0

    def start(self, calls: Mapping[int, Call], N: int) -> None:
        """Before the backward passes of a batch, with all calls of the forward pass."""
        self._of, self._N = _together(calls), N
        mine: dict[Key, list[Call]] = defaultdict(list)
        for index, call in calls.items():
            for key in self._of[index]:
                mine[key].append(call)
        self._started = list(mine)
        for key, found in mine.items():
            if key not in self.sums:
                self.sums[key] = self._make(key, found)
            if (sums := self.sums[key]) is not None:
                sums.start(found, N)

    def receive(self, index: int, call: Call, g: Tensor) -> None:
        """A gradient has arrived."""
        for key in self._of[index]:
            if (sums := self.sums[key]) is not None:
                sums.receive(call, g, self._N)

    def complete(self) -> None:
        """After all batches."""
        for sums in self.sums.values():
            if sums is not None:
                sums.complete()

    def end_column(self) -> None:
        """A backward pass has ended."""
        for key in self._started:
            if (sums := self.sums[key]) is not None:
                sums.end_column()


def _together(calls: Mapping[int, Call]) -> dict[int, list[Key]]:
    """For each call, the layers that it belongs to.

    Weight and bias are one layer where they are never used apart, at the same positions;
    otherwise each is one.
    """
    forms: dict[int | None, set[str]] = defaultdict(set)
    with_weight: dict[int | None, set[int | None]] = defaultdict(set)
    with_bias: dict[int | None, set[int | None]] = defaultdict(set)
    for call in calls.values():
        forms[call.weight].add(call.form)
        with_weight[call.weight].add(call.bias)
        with_bias[call.bias].add(call.weight)

    def is_pair(w: int | None, b: int | None) -> bool:
        return len(with_weight[w]) == len(with_bias[b]) == 1

    found: dict[int, list[Key]] = {}
    for index, call in calls.items():
        w, b, form = call.weight, call.bias, call.form
        if w is not None and forms[w] == {"matrix", "table"}:
            found[index] = [(w, None, TIED)]
            found[index] += [] if b is None else [(None, b, form)]
        elif None in (w, b) or (is_pair(w, b) and not call.bias_apart):
            found[index] = [(w, b, form)]
        else:
            found[index] = [(w, None, form), (None, b, form)]
    return found
