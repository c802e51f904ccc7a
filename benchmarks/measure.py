"""What is measured for a case: each function yields rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from case import Case, Row
from memory import GRADIENT, peak_memory
from peers import (
    BASELINE,
    CONTENDERS,
    LINEARISED,
    MAIN,
    PLAIN,
    Product,
    build_curvlinops,
    build_ours,
    math_attention,
)
from reference import reference
from scipy.sparse.linalg import LinearOperator, eigsh
from timing import (
    BYTES,
    Failure,
    Sample,
    attempt,
    interleaved,
)
from torch import Tensor

NUM_EIGENVALUES, EIGENVALUE_TOLERANCE = 10, 1e-3
EIGENVALUE_DATA = 4  # times the data of the other parts


def products(case: Case) -> Iterator[Row]:
    """Cost of a product, for each number of columns and each clock."""
    w = case.workload
    w.gradient()  # warm; the products are when they have been checked
    made = {
        c.name: attempt(c.products[case.matrix], w)
        for c in CONTENDERS
        if case.matrix in c.products
    }
    truth: dict[int, Tensor | Failure] = {}
    for k in case.widths:
        V = case.columns(k)
        for j in {0, k - 1} - truth.keys():
            truth[j] = attempt(reference, w, case.matrix, V[:, j])
        v = V[:, 0] if k == 1 else V
        able: dict[str, Product] = {}
        failed: dict[str, Failure] = {}
        errors: dict[str, float] = {}
        for c in CONTENDERS:
            if c.name not in made or k > c.widest:
                continue
            product = made[c.name]
            is_made = not isinstance(product, Failure)
            error = attempt(_error, product, v, truth) if is_made else product
            if isinstance(error, Failure):
                failed[c.name] = error
                continue
            able[c.name] = product
            errors |= {} if error is None else {c.name: error}
        for clock in case.clocks:
            runs: dict[str, Callable[[], object]] = {GRADIENT: w.gradient}
            names = able if clock is case.clock else [n for n in MAIN if n in able]
            runs |= {name: partial(able[name], v) for name in names}
            times = interleaved(runs, clock, case.effort, warm=clock is not case.clock)
            unit = times.pop(GRADIENT)
            yield case.row("product", k, clock.name, unit, times | failed, error=errors)


def _error(
    multiply: Product, v: Tensor, truth: Mapping[int, Tensor | Failure]
) -> float | None:
    """Largest relative error of the first and the last column."""
    product = multiply(v)
    product = product[:, None] if product.ndim == 1 else product
    errors = []
    for j in {0, product.shape[1] - 1}:
        right = truth[j]
        if isinstance(right, Failure):
            return None
        errors.append(float((product[:, j].to(right.dtype) - right).norm() / right.norm()))
    if not all(map(math.isfinite, errors)):
        raise ArithmeticError("the product is not finite")
    return max(errors)


def construction(case: Case) -> Iterator[Row]:
    """Building the operator with its determinism check.

    On four batches at least: a check may look closer at the first.
    """
    w, matrix = case.workload, case.matrix
    w = replace(w, data=w.data * math.ceil(4 / len(w.data)))
    runs = {
        GRADIENT: w.gradient,
        BASELINE: math_attention(lambda: build_curvlinops(w, matrix)),
        PLAIN: lambda: build_ours(w, matrix),
    }
    times = interleaved(runs, case.clock, case.effort)
    unit = times.pop(GRADIENT)
    yield case.row("construction", 1, case.clock.name, unit, times)


def set_up(case: Case) -> Iterator[Row]:
    """Linearising, once built, for the hundred products that are the default."""
    w = case.workload
    A = build_ours(w, case.matrix, check_deterministic=False, num_data=w.num_data)
    kept = attempt(lambda: A.linearize().nbytes())  # the first one also imports
    runs = {GRADIENT: w.gradient, LINEARISED: A.linearize}
    effort = replace(case.effort, repetitions=min(case.effort.repetitions, 3), fewest=1)
    times = interleaved(runs, case.clock, effort, warm=False)
    unit = times.pop(GRADIENT)
    details = {} if isinstance(kept, Failure) else {"nbytes": {LINEARISED: kept}}
    yield case.row("set-up", 1, case.clock.name, unit, times, **details)


def memory(case: Case) -> Iterator[Row]:
    """Peak memory of a product with the largest number of columns, a process each."""
    k = max(case.widths)

    def peak(contender: str) -> Sample | Failure:
        args = (case.network, case.matrix, contender, k, case.device, case.dtype)
        size = attempt(peak_memory, *args)
        return size if isinstance(size, Failure) else Sample(size, size, size, 1)

    unit = peak(GRADIENT)
    if isinstance(unit, Failure) or unit.median < 2**20:
        unit = Sample(0, 0, 0, 1)  # below what can be resolved
    results = {name: peak(name) for name in MAIN}
    yield case.row("peak memory", k, BYTES, unit, results)


def eigenvalues(case: Case) -> Iterator[Row]:
    """The ten top eigenvalues with SciPy, from nothing: construction, set-up, Lanczos."""
    if case.matrix != "Hessian" or case.dtype != "float32":
        return
    # set-up takes as long on little data as on much: a data set of some batches is fair
    w = replace(case.workload, data=case.workload.data * EIGENVALUE_DATA)
    found: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    start = case.columns(1)[:, 0].float().cpu().numpy()

    def solve(name: str, build: Callable[[], Any]) -> None:
        A = build().to_scipy(dtype=np.float32)
        counts[name] = 0

        def matvec(v: np.ndarray) -> np.ndarray:
            counts[name] += 1
            return A.matvec(v)

        counted = LinearOperator(A.shape, matvec=matvec, dtype=np.float32)
        found[name] = eigsh(
            counted,
            k=NUM_EIGENVALUES,
            which="LA",
            tol=EIGENVALUE_TOLERANCE,
            v0=start,
            maxiter=50,
            return_eigenvectors=False,
        )

    theirs = math_attention(
        lambda: solve(BASELINE, lambda: build_curvlinops(w, case.matrix))
    )
    runs = {
        GRADIENT: w.gradient,
        BASELINE: theirs,
        PLAIN: lambda: solve(PLAIN, lambda: build_ours(w, case.matrix)),
        LINEARISED: lambda: solve(
            LINEARISED, lambda: build_ours(w, case.matrix).linearize()
        ),
    }
    effort = replace(case.effort, fewest=1, seconds=case.effort.seconds / 3)
    times = interleaved(runs, case.clock, effort, warm=False)
    unit = times.pop(GRADIENT)
    right = found.get(PLAIN)
    errors = {}
    if right is not None:
        scale = abs(right).max()
        errors = {n: float(abs(e - right).max() / scale) for n, e in found.items()}
    row = case.row("eigenvalues", 1, case.clock.name, unit, times, difference=errors)
    for name, count in counts.items():
        row["contenders"][name]["products"] = count
    yield row


PARTS: dict[str, Callable[[Case], Iterator[Row]]] = {
    "product": products,
    "construction": construction,
    "set-up": set_up,
    "peak memory": memory,
    "eigenvalues": eigenvalues,
}
