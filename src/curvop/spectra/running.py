"""Runs that are saved on the way, and end early on Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from curvop.checkpoint import Checkpoint, State
from curvop.spectra.products import Products


class Run(Protocol):
    """An algorithm between two products."""

    def run(self, multiply: Products, save: Callable[[], None]) -> str:
        """Go on to the end; the status, as a word."""

    def state(self) -> State:
        """What to go on from."""


def carry_out(run: Run, multiply: Products, file: Checkpoint, stage: str) -> str:
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
