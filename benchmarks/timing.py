"""Times that can be compared: one process, interleaved, medians with quartiles."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Clock:
    """What is read before and after a run, and the threads that the run may use."""

    name: str
    threads: int
    read: Callable[[], float]


def _finished_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


CPU = Clock("CPU time, one thread", 1, time.process_time)
WALL = Clock("wall time, two threads", 2, time.perf_counter)
GPU = Clock("wall time, GPU", 1, _finished_gpu)
BYTES = "bytes"  # where no time is measured


@dataclass(frozen=True)
class Sample:
    """Repeated measurements: median and quartiles."""

    median: float
    lower: float
    upper: float
    repetitions: int


@dataclass(frozen=True)
class Failure:
    """Why there is no measurement."""

    message: str


@dataclass(frozen=True)
class Effort:
    """How often to measure."""

    repetitions: int = 9
    fewest: int = 3  # these always; the others only while the seconds last
    seconds: float = 30.0


def attempt(run: Callable[..., Any], *args: Any) -> Any:
    """What it returns, or the failure: one contender must not stop the others."""
    try:
        return run(*args)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Failure(f"{type(error).__name__}: {lines[0]}"[:160])


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    clock: Clock,
    effort: Effort,
    *,
    warm: bool = True,
) -> dict[str, Sample | Failure]:
    """Run all in turn, many times, after one run each to warm up.

    The order rotates, so that nobody always follows the same neighbour. Garbage is
    collected between the runs, not in them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(clock.threads)
    gc.collect()
    gc.freeze()  # what exists already need not be searched each time
    gc.disable()
    try:
        return _in_turn(dict(runs), clock, effort, warm)
    finally:
        gc.enable()
        gc.unfreeze()
        torch.set_num_threads(threads)


def _in_turn(
    runs: dict[str, Callable[[], object]], clock: Clock, effort: Effort, warm: bool
) -> dict[str, Sample | Failure]:
    failures: dict[str, Failure] = {}
    readings: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    started = time.perf_counter()
    for repetition in range(-warm, effort.repetitions):
        late = time.perf_counter() - started > effort.seconds
        if late and repetition >= effort.fewest:
            break
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            if name in failures:
                continue
            reading = attempt(_read, runs[name], clock)
            if isinstance(reading, Failure):
                failures[name] = reading
            elif repetition >= 0:
                readings[name].append(reading)
    return {name: failures.get(name) or summary(readings[name]) for name in runs}


def _read(run: Callable[[], object], clock: Clock) -> float:
    gc.collect()
    start = clock.read()
    run()
    return clock.read() - start


def summary(readings: list[float]) -> Sample:
    """Median and quartiles."""
    if len(readings) == 1:
        return Sample(readings[0], readings[0], readings[0], 1)
    lower, median, upper = statistics.quantiles(readings, n=4, method="inclusive")
    return Sample(median, lower, upper, len(readings))
