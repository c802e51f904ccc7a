"""Time spent in training and on measurements, and what a measurement may take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# A measurement waits until its reserve is saved, in units of what the last one took, and
# stops at its allowance of products; what is between them is for products that take longer,
# as on a machine that others use. What is left of it is there for the next one.
RESERVE, ALLOWANCE = 2.0, 1.25


@dataclass(frozen=True)
class TimeAccount:
    """Seconds earned by training and spent on measurements."""

    max_overhead: float  # share of the training time that may be spent
    training: float = 0.0  # seconds of training so far
    measuring: float = 0.0  # seconds spent so far, bookkeeping included
    last: float = math.inf  # seconds that the last measurement took

    @property
    def overhead(self) -> float:
        """Time spent, as a share of that in training."""
        return self.measuring / self.training if self.training else 0.0

    def covers(self, times: float = 1) -> bool:
        """Whether there is time for a measurement of so many times the last one."""
        credit = self.max_overhead * self.training - self.measuring
        return credit >= RESERVE * times * self.last

    def book(self, *, training: float, measuring: float) -> TimeAccount:
        """After this much more of both."""
        return TimeAccount(
            self.max_overhead,
            self.training + training,
            self.measuring + measuring,
            self.last,
        )

    def expect(self, seconds: float) -> TimeAccount:
        """Now that a measurement took this long."""
        return replace(self, last=seconds)
