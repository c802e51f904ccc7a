"""Computing a report: section after section within a time, and kept on disk."""

from __future__ import annotations

import datetime
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

from curvop._version import __version__
from curvop.checkpoint import Checkpoint, State
from curvop.inspection import Problem, seconds
from curvop.monitoring import preconditioner_of
from curvop.operators import LinearOperator
from curvop.reporting.deadline import Clock, Metered
from curvop.reporting.findings import Findings, Settings
from curvop.reporting.fingerprint import described, identity
from curvop.reporting.matrix import linearized, matrices
from curvop.reporting.resources import forget, is_saved, room_for_vectors
from curvop.reporting.sections import SECTIONS, Inputs, Section, wanted
from curvop.risk import loss_and_gradient

Say = Callable[[str], None]
FOR_THE_PAGE = 3.0  # seconds to draw and write it


def find(
    problem: Problem, settings: Settings, folder: Path, begin: float, say: Say
) -> Findings:
    """Compute what a report shows, or go on where an earlier run ended.

    Args:
        problem: What it is about.
        settings: How it is made.
        folder: Where the states of this run and its solvers are kept.
        begin: ``time.monotonic()`` from which the budget counts.
        say: Tells what happens.

    Raises:
        ValueError: If the problem cannot be reported on.
        KeyboardInterrupt: If it comes before there is anything to report.
    """
    end = begin + settings.budget - min(FOR_THE_PAGE, 0.2 * settings.budget)
    clock = Clock()
    notes: list[str] = []
    errors: dict[str, str] = {}
    with _collected(notes):
        given = preconditioner_of(
            problem.params, optimizer=problem.optimizer, given=problem.preconditioner
        )
        op, gauss_newton = matrices(problem, settings, notes)
        loss, g = loss_and_gradient(op.risk)
        about = described(problem, op, loss)
        A = linearized(op, end)
        clock.start(end)

        def other() -> LinearOperator:
            assert gauss_newton is not None
            return Metered(linearized(gauss_newton(), clock.deadline), clock)

        inputs = Inputs(
            A=Metered(A, clock),
            clock=clock,
            gradient=g,
            settings=settings,
            preconditioner=given,
            gauss_newton=None if gauss_newton is None else other,
            room=room_for_vectors(A),
        )
        folder.mkdir(parents=True, exist_ok=True)
        file = Checkpoint(
            folder / "sections.pt", inputs.A, identity(about, settings, given)
        )
        sections, runs = _resumed(file, folder, say)
        run: dict[str, Any] = {
            "started": _now(),
            "versions": _versions(),
            "linearized": getattr(A, "form", None),
        }
        say(
            f"{settings.curvature} of {about['parameters']:,} parameters on "
            f"{about['data']:,} data; a product takes {seconds(clock.seconds_per_product)}"
        )

        def save() -> None:
            file.save({"sections": sections, "runs": runs})

        with clock.noting_interrupts():
            status = _compute(inputs, sections, errors, folder, end, save, say)
        run |= {
            "finished": _now(),
            "seconds": time.monotonic() - begin,
            "products": clock.products,
            "seconds_per_product": clock.seconds_per_product,
        }
        runs.append(run)
        save()
    return Findings(
        settings,
        status,
        about,
        op.psd,
        tuple(section.name for section in wanted(inputs)),
        sections,
        errors,
        notes,
        runs,
        None if given is None else given.words(),
    )


def _compute(
    inputs: Inputs,
    sections: dict[str, State],
    errors: dict[str, str],
    folder: Path,
    end: float,
    save: Callable[[], None],
    say: Say,
) -> str:
    """The sections, most important first, then again while time is left; the status."""
    clock = inputs.clock
    asked = wanted(inputs)

    def is_done(section: Section) -> bool:
        done = sections.get(section.name, {}).get("status") == "done"
        return done or section.name in errors

    for attempt in range(2):
        todo = [s for s in asked if not is_done(s)]
        for i, section in enumerate(todo):
            left = end - time.monotonic()
            weights = [s.weight for s in todo[i:]]
            share = left * weights[0] / sum(weights)
            clock.start(time.monotonic() + share)
            limit = "" if math.isinf(share) else f" (up to {seconds(share)})"
            say(section.title + limit)
            before = sections.get(section.name, {})
            found = _compute_one(section, inputs, before, folder)
            if isinstance(found, str):
                errors[section.name] = found
            else:
                sections[section.name] = found
                save()
            if clock.is_interrupted:
                return "interrupted"
        if attempt == 0 and end - time.monotonic() < 2 * clock.seconds_per_product:
            break
    return "complete" if all(map(is_done, asked)) else "incomplete"


def _compute_one(
    section: Section, inputs: Inputs, before: State, folder: Path
) -> State | str:
    """One section, which may end early; or why it failed."""
    clock, file = inputs.clock, folder / f"{section.name}.pt"
    begin, products = time.monotonic(), clock.products
    try:
        found = section.compute(inputs, before, file)
    except KeyboardInterrupt:
        found = {**before, "status": "incomplete"}
        if not clock.is_stopped:
            raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    if _size(found) < _size(before):  # it began anew, and did not come as far
        found = before
    if found["status"] == "done":
        forget(file)
    return {
        **found,
        "resumable": is_saved(file),
        "seconds": before.get("seconds", 0.0) + time.monotonic() - begin,
        "products": before.get("products", 0) + clock.products - products,
    }


def _size(state: State) -> int:
    """Number of eigenvalues, or of random vectors, that were done."""
    return sum(len(state.get(key, ())) for key in ("values", "nodes"))


def _resumed(
    file: Checkpoint, folder: Path, say: Say
) -> tuple[dict[str, State], list[dict[str, Any]]]:
    """What an earlier run of the same problem left; another problem's is removed."""
    try:
        state = file.load()
    except ValueError as error:
        what = str(error).split(". ")[0]
        say(f"The state of an earlier report cannot be used: {what}. Computing anew.")
        for old in folder.glob("*.pt"):
            old.unlink()
        return {}, []
    if state is None:
        return {}, []
    done = [
        s.title
        for s in SECTIONS
        if state["sections"].get(s.name, {}).get("status") == "done"
    ]
    say(f"Going on with an earlier run; done: {', '.join(done).lower() or 'nothing'}")
    return dict(state["sections"]), list(state["runs"])


@contextmanager
def _collected(notes: list[str]) -> Iterator[None]:
    """Warnings of the kind that are meant for users become notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for warning in caught:
                is_meant = issubclass(warning.category, UserWarning | RuntimeWarning)
                if is_meant and (text := str(warning.message)) not in notes:
                    notes.append(text)


def _now() -> str:
    """The time in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "curvop": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
