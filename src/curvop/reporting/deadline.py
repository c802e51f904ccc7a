"""The deadline: products are counted and timed, and end when the time is up."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from curvop.operators import Blocks, LinearOperator, properties

UNITS = {"h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "": 1.0}
PART = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(h|min|m|s|)\s*")


def in_seconds(duration: str | float | None) -> float:
    """A duration in seconds; infinite for ``None`` and ``"none"``.

    Args:
        duration: As in ``"90s"``, ``"10m"``, ``"1h30m"``, or a number of seconds.

    Raises:
        ValueError: If it is none, or not positive.

    >>> in_seconds("1h30m"), in_seconds("90"), in_seconds("none")
    (5400.0, 90.0, inf)
    """
    if duration is None or duration == "none":
        return math.inf
    text = str(duration)
    parts = PART.findall(text)
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    if PART.sub("", text) or not 0 < total < math.inf or isinstance(duration, bool):
        raise ValueError(
            f"Expected a duration such as 90s, 10m, 1h30m or none, got {duration!r}."
        )
    return total


class TimeUp(KeyboardInterrupt):
    """The time is up: solvers end as they do on Ctrl-C, with what they have."""


class Clock:
    """Counts products and their time; ends them when a deadline is near.

    A product that would not be done by the deadline, judged by those before, is not begun.
    """

    def __init__(self) -> None:
        self.products = 0
        self.seconds = 0.0
        self.deadline = math.inf
        self.is_expired = False
        self.is_interrupted = False

    @property
    def is_stopped(self) -> bool:
        """Whether the section ended early, by the deadline or by Ctrl-C."""
        return self.is_expired or self.is_interrupted

    @property
    def seconds_per_product(self) -> float:
        """Mean over the products so far."""
        return self.seconds / self.products if self.products else 0.0

    def start(self, deadline: float) -> None:
        """Begin a section that may take until then."""
        self.deadline = deadline
        self.is_expired = False

    def affordable(self) -> float:
        """Number of products until the deadline."""
        left = max(self.deadline - time.monotonic(), 0.0)
        return left / self.seconds_per_product if self.products else math.inf

    def multiply(self, product: Callable[[Blocks], Blocks], M: Blocks) -> Blocks:
        """The product, timed.

        Raises:
            TimeUp: If it would not be done by the deadline.
        """
        K = M[0].shape[-1]
        if self.affordable() < K:
            self.is_expired = True
            raise TimeUp
        begin = time.monotonic()
        out = product(M)
        self.seconds += time.monotonic() - begin
        self.products += K
        return out

    @contextmanager
    def noting_interrupts(self) -> Iterator[None]:
        """Remember Ctrl-C, which solvers answer with what they have, like a deadline."""
        handler = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if not main or not callable(handler):
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self.is_interrupted = True
            handler(number, frame)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)


@final
class Metered(LinearOperator):
    """The same matrix; its products go through a clock."""

    def __init__(self, A: LinearOperator, clock: Clock) -> None:
        super().__init__(**properties(A))
        self._A = A
        self._clock = clock

    @property
    def columns_at_once(self) -> int | None:
        """As many as the matrix itself."""
        return self._A.columns_at_once

    def _matmat(self, M: Blocks) -> Blocks:
        return self._clock.multiply(self._A.__matmul__, M)

    def _transpose(self) -> LinearOperator:
        return Metered(self._A.T, self._clock)
