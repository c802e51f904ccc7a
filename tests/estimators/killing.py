"""A program that starts runs, kills them at random moments, and starts them again.

It is a process of its own: a fork of one with threads, as that of the tests is, may wait
for ever for a lock that a thread of the parent held.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from curvop import Estimate
from curvop.estimators import trace
from curvop.estimators.trace import METHODS
from tests.estimators.matrices import SPECTRA, seeded, watched, with_spectrum

A = with_spectrum(SPECTRA["indefinite"])
TOLERANCES = [None, 16.0]
CHUNK = 4
KILLS = 12


def run(
    path: Path | None, on_product: Callable[[int], object] = lambda K: None, **options
) -> Estimate:
    """An estimate of the trace, the same each time."""
    options = {"num_matvecs": 100, "generator": seeded(5)} | options
    return trace(watched(A, on_product), chunk_size=CHUNK, checkpoint=path, **options)


def in_a_child(path: Path, log: Path, **options) -> int:
    """Start a run in a forked process; each product takes a millisecond."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

            def slow(columns: int) -> None:
                time.sleep(0.001)
                os.write(out, b"." * columns)

            run(path, slow, **options)
            code = 0
        finally:
            os._exit(code)
    return pid


def killed(folder: Path, **options) -> dict[str, object]:
    """Kill runs until there were enough kills, and let the last one finish."""
    path, log = folder / "run.pt", folder / "log"
    moments = random.Random(repr(options))
    kills = starts = of_the_last = 0
    while True:
        pid = in_a_child(path, log, **options)
        starts += 1
        if kills < KILLS:
            time.sleep(moments.uniform(0.0, 0.03))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            kills, of_the_last = kills + 1, of_the_last + 1
        elif os.WEXITSTATUS(status) != 0:
            raise RuntimeError("a run failed")
        elif kills >= KILLS:
            break
        else:  # it was done before it was killed: the same again from the start
            path.unlink()
            log.unlink()
            starts = of_the_last = 0
    products = log.stat().st_size
    return {
        "estimate": dataclasses.asdict(run(path, **options)),
        "products": products,
        "starts": starts,
        "kills": kills,
        "kills_of_the_last": of_the_last,
    }


def main(folder: Path) -> None:
    """All methods, with and without a tolerance."""
    torch.set_num_threads(1)
    results = {}
    for method in METHODS:
        for tol in TOLERANCES:
            place = folder / f"{method} {tol}"
            place.mkdir()
            results[f"{method} {tol}"] = killed(place, method=method, tol=tol)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
