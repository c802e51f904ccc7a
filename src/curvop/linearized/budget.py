"""What a linearised operator may keep of each batch, and how much memory that takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from curvop.arguments import at_least
from curvop.operators import Blocks
from curvop.risk import Batch, Predictions, Risk, merge, nested

# Small batches are merged up to this many data and bytes of activations: Python overhead
# is negligible there, and what is larger falls out of the processor's caches.
MERGED_ROWS = 1024
MERGED_BYTES = 16 * 2**20

# Recording takes about as long as this many products.
REPAYS = 10

Each = TypeVar("Each")
BatchProduct = Callable[[Blocks], Blocks]  # of one batch, [K, *n_i] -> [K, *n_i]


@dataclass(frozen=True)
class Budget:
    """How far to go to make products cheap.

    Attributes:
        memory_budget: Bytes to keep at most, if there is a limit.
        batch_size: Number of data up to which batches are merged, unless automatic.
        compiler: A backend of ``torch.compile``, if any.
        pays_recording: Whether there are products enough to come.
    """

    memory_budget: int | None
    batch_size: int | None
    compiler: str | None
    pays_recording: bool

    @staticmethod
    def asked_for(
        memory_budget: int | None,
        num_products: int,
        batch_size: int | None,
        compile: bool | str,
    ) -> Budget:
        """The arguments of ``linearize``, checked.

        Raises:
            TypeError: If one is of the wrong kind.
            ValueError: If one is out of range.
        """
        for name, value, least in (
            ("memory_budget", memory_budget, 0),
            ("num_products", num_products, 1),
            ("batch_size", batch_size, 1),
        ):
            if value is None and name != "num_products":
                continue
            at_least(least, name, value)
        if not isinstance(compile, bool | str):
            raise TypeError(
                "Expected compile as True, False or the name of a backend, got "
                f"{type(compile).__name__}."
            )
        return Budget(
            memory_budget,
            batch_size,
            "inductor" if compile is True else compile or None,
            pays_recording=num_products >= REPAYS,
        )

    def allows(self, nbytes: int) -> bool:
        """Whether so much may be kept."""
        return self.memory_budget is None or nbytes <= self.memory_budget


@dataclass(frozen=True)
class Kept(Generic[Each]):
    """What is kept.

    Attributes:
        batches: Of each batch.
        nbytes: Bytes beyond parameters and data.
        compile_seconds: Seconds that a compiler took.
    """

    batches: Sequence[Each]
    nbytes: int
    compile_seconds: float = 0.0


def merged(
    risk: Risk | Predictions, batches: Sequence[Batch], batch_size: int | None
) -> Sequence[Batch]:
    """Batches put together; that it does not change the matrix is verified later."""
    if batch_size is None and len(batches) > 1:
        X, y = batches[0]
        saved: dict[int, int] = {}
        with (
            torch.enable_grad(),
            saved_by_autograd(saved, besides=storages_in_use(risk, batches)),
        ):
            risk.predict([p.detach().requires_grad_() for p in risk.parameters.tensors], X)
        bytes_per_row = sum(saved.values()) / risk.data.batch_size(X, y)
        most = min(MERGED_ROWS, int(MERGED_BYTES / max(bytes_per_row, 1)))
        rows = sum(risk.data.batch_size(X, y) for X, y in batches)
        # of one size, as far as possible: one recording serves them all
        batch_size = math.ceil(rows / math.ceil(rows / max(most, 1)))
    return merge(batches, batch_size or 1)


@contextmanager
def saved_by_autograd(saved: dict[int, int], besides: set[int]) -> Iterator[None]:
    """Note the bytes of each storage that autograd saves."""

    def note(t: Tensor) -> Tensor:
        saved.update(new_storages([t], besides))
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        yield


def storages_in_use(risk: Risk | Predictions, batches: Sequence[Batch]) -> set[int]:
    """Storages of model and data, which exist anyway."""
    tensors = [*risk.parameters.watched, *nested.tensors(list(batches))]
    return {t.untyped_storage().data_ptr() for t in tensors}


def new_storages(tensors: Sequence[Tensor], besides: set[int]) -> dict[int, int]:
    """Bytes of each storage that is not known yet, by its address."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return {where: n for where, n in sizes.items() if where not in besides}
