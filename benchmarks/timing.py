"""Times that can be compared: one process, interleaved, medians with quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """CPU seconds of repeated runs: median and quartiles."""

    median: float
    lower: float
    upper: float


def interleaved(
    contestants: Mapping[str, Callable[[], object]], repetitions: int
) -> dict[str, Timing]:
    """Run all contestants in turn, many times, after one run each to warm up."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: _summary(times) for name, times in seconds.items()}


def _summary(times: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper)
