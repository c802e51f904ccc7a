"""The data: mini-batches on the right device, counted, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.autograd import leaves_of
from curvop.risk.nested import map_tensors, tensors
from curvop.risk.unpacking import Unpack, as_pair, refuse_single_batch


@dataclass(frozen=True)
class Data:
    """A re-iterable of mini-batches ``(X, y)``.

    Attributes:
        source: What the user passed.
        device: Where the batches go.
        num_data: Number of data that the user stated, or ``None``.
        batch_size_fn: Number of data in ``X``, or ``None`` for the leading axis.
        progressbar: Whether passes show a bar.
        may_be_empty: Whether a pass may have no batch, as on one rank of several.
        unpack: What makes ``(X, y)`` of a batch in another form, or ``None``.
        takes_weight: Whether a third entry of a batch is for the loss.
        params: Tensors that no batch may be computed from: batches are constants.
    """

    source: Iterable[Any]
    device: torch.device
    num_data: int | None = None
    batch_size_fn: Callable[[Any], int] | None = None
    progressbar: bool = False
    may_be_empty: bool = False
    unpack: Unpack | None = None
    takes_weight: bool = False
    params: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be iterated over repeatedly."""
        if isinstance(self.source, Iterator):
            raise ValueError(
                "Expected data that can be iterated over many times, got the one-shot "
                f"iterator {type(self.source).__name__}. Pass a list or a DataLoader, "
                "for instance list(data)."
            )
        is_sequence = hasattr(self.source, "__getitem__")  # such as a Dataset of batches
        if not isinstance(self.source, Iterable) and not is_sequence:
            raise TypeError(
                "Expected data as an iterable of batches (X, y), got "
                f"{type(self.source).__name__}. Wrap one batch as [(X, y)]."
            )
        refuse_single_batch(self.source)
        if self.unpack is not None and not callable(self.unpack):
            raise TypeError(
                "Expected unpack as a function of a batch that returns (X, y), got "
                f"{type(self.unpack).__name__}."
            )
        if self.num_data is not None and (
            not isinstance(self.num_data, Integral)
            or isinstance(self.num_data, bool)
            or self.num_data < 1
        ):
            raise ValueError(f"Expected a positive num_data, got {self.num_data!r}.")
        if self.num_batches == 0:
            self._check_count(0)

    @property
    def num_batches(self) -> int | None:
        """Number of batches, if the source has a length; a loader of a stream has none."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def generators(self) -> tuple[object, ...]:
        """Generators that a pass over a ``DataLoader`` advances."""
        batch_sampler = getattr(self.source, "batch_sampler", None)
        owners = (
            self.source,
            getattr(self.source, "sampler", None),
            getattr(batch_sampler, "sampler", None),
        )
        return tuple(getattr(owner, "generator", None) for owner in owners)

    def batches(self, what: str) -> Iterator[tuple[Any, Any]]:
        """One pass over the data, on the device.

        Args:
            what: Label of the progress bar.

        Raises:
            TypeError: If a batch is not a pair.
            ValueError: If there is no batch, the count contradicts ``num_data``, or a
                batch is computed from the parameters.
        """
        seen = 0
        count = self.num_data is not None
        for batch in tqdm(self.source, desc=what, disable=not self.progressbar):
            X, y = (map_tensors(self._move, part) for part in self.pair(batch))
            seen += self.batch_size(X, y) if count else 1
            yield X, y
        self._check_count(seen)

    def pair(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch of the source."""
        if self.unpack is not None:
            batch = self.unpack(batch)
        return as_pair(batch, takes_weight=self.takes_weight)

    def batch_size(self, X: Any, y: Any) -> int:
        """Number of data in a batch.

        Raises:
            ValueError: If it cannot be found out.
        """
        if self.batch_size_fn is not None:
            return self.batch_size_fn(X)
        for part in (X, y):
            sizes = {t.shape[0] if t.ndim else None for t in tensors(part)}
            if len(sizes) == 1 and None not in sizes:
                (size,) = sizes
                return int(size)  # type: ignore[arg-type]
        raise ValueError(
            "Cannot tell how many data a batch holds: neither X nor y has one leading "
            "axis. Pass batch_size_fn, a function of X."
        )

    def _move(self, t: Tensor) -> Tensor:
        """The tensor as a constant on the device."""
        if t.requires_grad:
            if any(p is leaf for leaf in leaves_of([t]) for p in self.params):
                raise ValueError(
                    f"Expected data that is constant, got a tensor of shape "
                    f"{tuple(t.shape)} that is computed from the parameters: its "
                    "derivative would be missed. Compute it within the model."
                )
            t = t.detach()
        # tensors made in inference mode cannot be saved for backward
        return t.to(self.device).clone() if t.is_inference() else t.to(self.device)

    def _check_count(self, seen: int) -> None:
        if seen == 0 and not self.may_be_empty:
            raise ValueError("Expected at least one batch of data, got none.")
        if seen and self.num_data is not None and seen != self.num_data:
            raise ValueError(
                f"num_data says {self.num_data}, but the data holds {seen}. Leave "
                "num_data out, or correct the data (drop_last? batch_size_fn?)."
            )
