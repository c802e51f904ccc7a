"""The sections of a report: what is computed, most important first.

Each takes the inputs, what an earlier run left behind, and a file for the state of its
solver. It answers with tensors, numbers and words, among them ``status``: ``"done"``, or
``"incomplete"`` if the time was up or Ctrl-C came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from curvop.checkpoint import State
from curvop.estimators import block_traces, trace
from curvop.monitoring import Preconditioner
from curvop.operators import DiagonalLinearOperator, LinearOperator
from curvop.reporting.deadline import Clock
from curvop.reporting.findings import Settings
from curvop.reporting.resources import is_worth_saving, settled
from curvop.spectra import Eigenpairs, eigsh, spectral_density

PROBES, STEPS = 8, 64  # of the density
TRACE_PRODUCTS = 100
BESIDE_BASIS = 11  # vectors that eigsh holds beside its basis
ROUNDS, ROUND = 5, 20  # of traces of blocks; the time is looked at between rounds


@dataclass(frozen=True)
class Inputs:
    """What the sections are computed from."""

    A: LinearOperator  # the matrix; its products are timed by clock
    clock: Clock  # what ends a section
    gradient: Tensor  # [N], of the same loss
    settings: Settings  # how the report is made
    preconditioner: Preconditioner | None  # of the optimizer, if there is one
    # makes the GGN, timed as well; None if A serves
    gauss_newton: Callable[[], LinearOperator] | None
    room: int  # number of vectors that may be held at once

    def checkpoint(self, file: Path, num_vectors: int) -> Path | None:
        """The file, if it is worth writing the state of a solver with so many vectors."""
        seconds = self.clock.seconds_per_product
        is_worth = file.exists() or is_worth_saving(self.A, num_vectors, seconds)
        return file if is_worth else None

    def generator(self, stream: int = 0) -> Generator:
        """Random vectors of their own for each stream."""
        return torch.Generator().manual_seed(self.settings.seed + stream)


Compute = Callable[[Inputs, State, Path], State]


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    name: str  # its key in the record
    title: str  # its heading
    weight: float  # its share of the time that is left, relative to those to come
    compute: Compute  # what it does


def gradient(inputs: Inputs, before: State, file: Path) -> State:
    """Norm of the gradient, and the curvature along it."""
    g = inputs.gradient
    norm = float(g.norm())
    found: State = {"status": "done", "norm": norm, "curvature_along": None}
    if norm == 0:
        return found
    u = g / norm
    try:
        return {**found, "curvature_along": float(u @ (inputs.A @ u))}
    except KeyboardInterrupt:
        return {**found, "status": "incomplete"}


def top(inputs: Inputs, before: State, file: Path) -> State:
    """The largest eigenvalues, and how much of the gradient is in their space."""
    pairs = _eigenpairs(inputs, "LA", file, k=inputs.settings.k)
    g = inputs.gradient
    norm = g.norm()
    shares = None
    if norm > 0:
        shares = ((pairs.vectors.T @ g) / norm).square().double().cpu().flip(0)
    return {**_values(pairs), "gradient_shares": shares}


def bottom(inputs: Inputs, before: State, file: Path) -> State:
    """The smallest eigenvalues."""
    return _values(_eigenpairs(inputs, "SA", file, k=inputs.settings.k))


def sharpness(inputs: Inputs, before: State, file: Path) -> State:
    """The largest eigenvalue of what the optimizer sees."""
    given = inputs.preconditioner
    assert given is not None
    P = given.for_matrix(inputs.A)
    if isinstance(P, DiagonalLinearOperator):
        return _values(_eigenpairs(inputs, "LA", file, k=1, P=P))
    return _values(_eigenpairs(inputs, "LA", file, k=1, P=P, method="lobpcg"))


def density(inputs: Inputs, before: State, file: Path) -> State:
    """Gauss rules of the spectrum from random vectors, of which a density is made."""
    return _rules(inputs, inputs.A, before, file)


def dimension(inputs: Inputs, before: State, file: Path) -> State:
    """The same of the GGN, of which an effective dimension is made."""
    assert inputs.gauss_newton is not None
    return _rules(inputs, inputs.gauss_newton(), before, file)


def _rules(inputs: Inputs, A: LinearOperator, before: State, file: Path) -> State:
    # two probes at least make a band
    steps = int(min(STEPS, max(16, inputs.clock.affordable() // 2)))
    file, steps = settled(file, max(1, min(steps, inputs.room - 2)))
    unfinished = {"status": "incomplete", "steps": steps}
    try:
        found = spectral_density(
            A,
            num_probes=PROBES,
            num_matvecs=steps,
            generator=inputs.generator(),
            progressbar=inputs.settings.progressbar,
            checkpoint=inputs.checkpoint(file, steps + 1),
        )
    except KeyboardInterrupt:  # before the first probe was done
        return unfinished
    state = {**unfinished, "nodes": found.nodes, "weights": found.weights}
    return state if found.status == "interrupted" else {**state, "status": "done"}


def traces(inputs: Inputs, before: State, file: Path) -> State:
    """The trace, and those of the blocks of each parameter."""
    state = {"status": "incomplete", "rounds": 0, **before}
    if "trace" not in state:
        size = 2 * TRACE_PRODUCTS // 3  # vectors of the sketch, and its products
        file, size = settled(file, size if inputs.room >= size else 1)
        total = trace(
            inputs.A,
            method="hutch++" if size > 1 else "hutchinson",
            num_matvecs=TRACE_PRODUCTS,
            generator=inputs.generator(1),
            progressbar=inputs.settings.progressbar,
            checkpoint=inputs.checkpoint(file, size),
        )
        if inputs.clock.is_stopped:
            return state
        state["trace"] = [total.value, total.standard_error]
    # few columns are visited one by one: the traces are then exact
    exact = inputs.A.shape[0] <= ROUNDS * ROUND
    rounds, size = (1, ROUNDS * ROUND) if exact else (ROUNDS, ROUND)
    left = range(state["rounds"], rounds)
    bar = tqdm(
        left, "block_traces", unit=" rounds", disable=not inputs.settings.progressbar
    )
    for done in bar:
        try:
            blocks = block_traces(
                inputs.A,
                num_matvecs=size,
                generator=inputs.generator(2 + done),
            )
        except KeyboardInterrupt:
            return state
        found = list(blocks.values())
        value = torch.tensor([b.value for b in found], dtype=torch.float64)
        error = torch.tensor([b.standard_error for b in found], dtype=torch.float64)
        state = {
            **state,
            "names": [str(name) for name in blocks],
            "sum": state.get("sum", 0) + value,
            "sum_of_squared_errors": state.get("sum_of_squared_errors", 0) + error**2,
            "rounds": done + 1,
        }
    return {**state, "status": "done"}


def _eigenpairs(
    inputs: Inputs, which: str, file: Path, *, k: int, **options: Any
) -> Eigenpairs:
    """From a basis of the usual size, or as large as there is room for."""
    k = min(k, inputs.A.shape[0])
    usual = max(2 * k + 1, 20)
    file, ncv = settled(file, max(k + 2, min(usual, inputs.room - BESIDE_BASIS)))
    return eigsh(
        inputs.A,
        k,
        which=which,  # type: ignore[arg-type]
        tol=inputs.settings.tol,
        ncv=ncv if ncv < usual else None,
        generator=inputs.generator(),
        progressbar=inputs.settings.progressbar,
        checkpoint=inputs.checkpoint(file, ncv + BESIDE_BASIS),
        **options,
    )


def _values(pairs: Eigenpairs) -> State:
    """Largest first; a pair that is not proven is not there."""
    is_done = pairs.status != "interrupted"
    return {
        "status": "done" if is_done else "incomplete",
        "solver": pairs.status,
        "values": pairs.values.double().cpu().flip(0),
        "residuals": pairs.residuals.double().cpu().flip(0),
    }


SECTIONS = (
    Section("gradient", "Gradient", 0.5, gradient),
    Section("top", "Largest eigenvalues", 4, top),
    Section("sharpness", "Sharpness under the preconditioner", 2, sharpness),
    Section("density", "Spectral density", 4, density),
    Section("traces", "Traces", 2, traces),
    Section("bottom", "Smallest eigenvalues", 3, bottom),
    Section("dimension", "Effective dimension", 3, dimension),
)


def wanted(inputs: Inputs) -> list[Section]:
    """The sections that there are for these inputs.

    An optimizer that divides by nothing sees the largest eigenvalue, which is there; a
    psd matrix has an effective dimension of its own, from the density.
    """
    given = inputs.preconditioner
    needless = set()
    if given is None or given.is_identity:
        needless.add("sharpness")
    if inputs.gauss_newton is None:
        needless.add("dimension")
    return [section for section in SECTIONS if section.name not in needless]
