"""Ctrl-C, let through only while a matrix is multiplied."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Interrupts:
    """Holds Ctrl-C back inside the block, other than where it is :meth:`allowed`.

    Steps that work in place are then never left half done, and a product, which may
    take minutes, can be broken off. Python runs handlers in the main thread only: in
    another one there is nothing to hold back.
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
        """Let an interrupt through, one that came before as well."""
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
