"""Running a report: section after section within a time, kept on disk, then written."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from curvop.checkpoint import Checkpoint, State
from curvop.curvature import CurvatureLinearOperator
from curvop.curvature.risk import loss_and_gradient
from curvop.monitoring import preconditioner_of
from curvop.operators import LinearOperator
from curvop.reporting.account import Clock, Metered
from curvop.reporting.findings import Findings, Settings, duration, now, versions
from curvop.reporting.matrix import linearized, matrices
from curvop.reporting.problem import Problem
from curvop.reporting.resources import forget, is_saved, room_for_vectors
from curvop.reporting.sections import SECTIONS, Section, wanted
from curvop.reporting.subject import described, identity
from curvop.reporting.target import Target

Say = Callable[[str], None]
FOR_THE_PAGE = 3.0  # seconds to draw and write it


def find(
    target: Target, settings: Settings, folder: Path, begin: float, say: Say
) -> Findings:
    """Compute what a report shows, or go on where an earlier run ended.

    Args:
        target: What it is about.
        settings: How it is made.
        folder: Where the states of this run and its solvers are kept.
        begin: ``time.monotonic()`` from which the budget counts.
        say: Tells what happens.

    Raises:
        TargetError: If the target cannot be reported on.
        KeyboardInterrupt: If it comes before there is anything to report.
    """
    end = begin + settings.budget - min(FOR_THE_PAGE, 0.2 * settings.budget)
    clock = Clock()
    notes: list[str] = []
    with _collected(notes):
        given = preconditioner_of(
            target.params, optimizer=target.optimizer, given=target.preconditioner
        )
        op, gauss_newton = matrices(target, settings, notes)
        loss, g = loss_and_gradient(op)
        about = described(target, op, loss)
        A = linearized(op, end)
        clock.start(end)
        other: Callable[[], LinearOperator] | None = None
        if gauss_newton is not None:
            other = partial(_other, gauss_newton, clock)
        problem = Problem(
            A=Metered(A, clock),
            clock=clock,
            gradient=g,
            k=settings.k,
            tol=settings.tol,
            seed=settings.seed,
            preconditioner=given,
            gauss_newton=other,
            progressbar=settings.progressbar,
            room=room_for_vectors(A),
        )
        folder.mkdir(parents=True, exist_ok=True)
        file = Checkpoint(
            folder / "sections.pt", problem.A, identity(about, settings, given)
        )
        sections, runs = _resumed(file, folder, say)
        run = {
            "started": now(),
            "versions": versions(),
            "linearized": getattr(A, "form", None),
        }
        findings = Findings(
            settings,
            "incomplete",
            about,
            op.psd,
            tuple(section.name for section in wanted(problem)),
            sections,
            notes=notes,
            runs=[*runs, run],
            preconditioner=None if given is None else given.words(),
        )
        say(
            f"{settings.curvature} of {about['parameters']:,} parameters on "
            f"{about['data']:,} data; a product takes {duration(clock.seconds_per_product)}"
        )
        with clock.noting_interrupts():
            _compute(problem, findings, file, folder, end, say)
        run |= {
            "finished": now(),
            "seconds": time.monotonic() - begin,
            "products": clock.products,
            "seconds_per_product": clock.seconds_per_product,
        }
        file.save({"sections": findings.sections, "runs": findings.runs})
    return findings


def _other(make: Callable[[], CurvatureLinearOperator], clock: Clock) -> LinearOperator:
    return Metered(linearized(make(), clock.deadline), clock)


def _compute(
    problem: Problem,
    findings: Findings,
    file: Checkpoint,
    folder: Path,
    end: float,
    say: Say,
) -> None:
    """The sections, most important first; then again those for which time is left."""
    clock = problem.clock
    asked = wanted(problem)
    for attempt in range(2):
        todo = [s for s in asked if not _is_done(findings, s)]
        for i, section in enumerate(todo):
            left = end - time.monotonic()
            weights = [s.weight for s in todo[i:]]
            share = left * weights[0] / sum(weights)
            clock.start(time.monotonic() + share)
            limit = "" if math.isinf(share) else f" (up to {duration(share)})"
            say(section.title + limit)
            _compute_one(section, problem, findings, folder)
            if section.name not in findings.errors:
                file.save({"sections": findings.sections, "runs": findings.runs[:-1]})
            if clock.is_interrupted:
                findings.status = "interrupted"
                return
        if attempt == 0 and end - time.monotonic() < 2 * clock.seconds_per_product:
            break
    if all(_is_done(findings, s) for s in asked):
        findings.status = "complete"


def _compute_one(
    section: Section, problem: Problem, findings: Findings, folder: Path
) -> None:
    """One section, which may end early or fail."""
    clock, file = problem.clock, folder / f"{section.name}.pt"
    before = findings.sections.get(section.name, {})
    begin, products = time.monotonic(), clock.products
    try:
        found = section.compute(problem, before, file)
    except KeyboardInterrupt:
        found = {**before, "status": "incomplete"}
        if not clock.is_stopped:
            raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        findings.errors[section.name] = f"{type(error).__name__}: {error}"
        return
    if _size(found) < _size(before):  # it began anew, and did not come as far
        found = before
    if found["status"] == "done":
        forget(file)
    findings.sections[section.name] = {
        **found,
        "resumable": is_saved(file),
        "seconds": before.get("seconds", 0.0) + time.monotonic() - begin,
        "products": before.get("products", 0) + clock.products - products,
    }


def _size(state: State) -> int:
    """Number of eigenvalues, or of random vectors, that were done."""
    return sum(len(state.get(key, ())) for key in ("values", "nodes"))


def _is_done(findings: Findings, section: Section) -> bool:
    is_done = findings.sections.get(section.name, {}).get("status") == "done"
    return is_done or section.name in findings.errors


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
    done = [s.title for s in SECTIONS if _state(state, s.name) == "done"]
    say(f"Going on with an earlier run; done: {', '.join(done).lower() or 'nothing'}")
    return dict(state["sections"]), list(state["runs"])


def _state(state: State, name: str) -> str | None:
    section: State = state["sections"].get(name, {})
    return section.get("status")


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
