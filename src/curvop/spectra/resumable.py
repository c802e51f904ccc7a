"""Runs that can be interrupted and continued from a checkpoint.

Products are counted and shown, the state between them is written to a checkpoint every few
products, and Ctrl-C takes effect only during a product.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.checkpoint import Checkpoint, State
from curvop.operators import LinearOperator


class Interrupts:
    """Context that defers Ctrl-C, except where it is :meth:`allowed`.

    Steps that work in place are then never left half done, whereas a product, which may
    take minutes, can be interrupted. Python runs signal handlers in the main thread only:
    in another one there is nothing to defer.
    """

    def __init__(self) -> None:
        self._received: list[tuple[int, FrameType | None]] = []
        self._handler = signal.getsignal(signal.SIGINT)
        self._active = False

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        if main and callable(self._handler):
            signal.signal(signal.SIGINT, lambda *caught: self._received.append(caught))
            self._active = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._active:
            self._active = False
            signal.signal(signal.SIGINT, self._handler)
            self._deliver()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Context in which an interrupt takes effect, also a deferred one."""
        if not self._active:
            yield
            return
        held = signal.signal(signal.SIGINT, self._handler)
        try:
            self._deliver()
            yield
        finally:
            signal.signal(signal.SIGINT, held)

    def _deliver(self) -> None:
        if self._received and callable(self._handler):
            caught = self._received.pop()
            self._received.clear()
            self._handler(*caught)


class Products:
    """``A @ v``, counted.

    Args:
        A: The matrix.
        count: Products that were made before.
        interrupts: Deferred, except during a product.
        progressbar: Whether to show a bar.
        label: Label of the bar.
    """

    def __init__(
        self,
        A: LinearOperator,
        count: int,
        interrupts: Interrupts,
        *,
        progressbar: bool,
        label: str,
    ) -> None:
        self.A = A
        self.count = count
        self._interrupts = interrupts
        self._bar = tqdm(
            desc=label, unit=" products", initial=count, disable=not progressbar
        )

    def __call__(self, V: Tensor) -> Tensor:
        """Multiply onto the rows of ``V``: ``[K, N] -> [K, N]``.

        Raises:
            ValueError: If the product is not finite.
        """
        K, V = len(V), V.to(self.A.dtype)
        with self._interrupts.allowed():
            AV: Tensor = (self.A @ V[0])[None] if K == 1 else (self.A @ V.T).T
        if not bool(torch.isfinite(torch.stack(torch.aminmax(AV))).all()):
            what = "NaN" if bool(torch.isnan(AV).any()) else "infinity"
            raise ValueError(
                f"Expected finite products, got {what} at product {self.count + 1}. "
                "Check the model and the data; a checkpoint holds the state before it."
            )
        self.count += K
        self._bar.update(K)
        return AV

    def show(self, **figures: object) -> None:
        """Show numbers at the end of the bar."""
        if not self._bar.disable:
            self._bar.set_postfix(figures)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


class ResumableRun(Protocol):
    """An algorithm whose state can be saved between products."""

    def run(self, multiply: Products, save: Callable[[], None]) -> str:
        """Run to the end; returns the status."""

    def state(self) -> State:
        """The state to continue from."""


def carry_out(run: ResumableRun, multiply: Products, file: Checkpoint, stage: str) -> str:
    """Run to the end; ``"interrupted"`` on Ctrl-C, which leaves a checkpoint."""
    before = multiply.count

    def write() -> None:
        file.save({"stage": stage, "count": multiply.count, **run.state()})

    def save() -> None:
        nonlocal before
        if file.due(before, multiply.count):
            write()
        before = multiply.count

    try:
        return run.run(multiply, save)
    except KeyboardInterrupt:
        write()
        return "interrupted"
    finally:
        multiply.close()
