"""One loop for all solvers: columns end independently, by their true residuals.

A method has a start from an iterate and a step. When the residual of its recurrence is
small enough, the method is restarted from the iterate, which computes the true residual. If
that is small enough, too, the column has converged. If the recurrence had drifted away from
it, the column continues from the restart (residual replacement) as long as that still
helps; otherwise it has stagnated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.checkpoint import Checkpoint
from curvop.solvers.system import NOT_FINITE

Memory = dict[str, Tensor]
"""The state of a method between steps: tensors ``[K, ...]``, a row for each column.

``norm`` is that of the residual which must become small, ``residual_norm`` that of
``b - A x``, ``norm_A`` is a lower bound of ``‖A‖``. ``floor`` is a level of ``norm`` at
which rounding may hide the true one; infinite if the recurrence has broken down.
"""

# A true norm that exceeds the one of the recurrence by this factor has drifted from it.
DRIFT = 1.1


class Recurrence(Protocol):
    """An iterative method, over rows of iterates."""

    def start(self, rows: list[int], X: Tensor) -> Memory:
        """Begin from the true residuals of ``X``, the iterates of these columns."""

    def step(self, X: Tensor, memory: Memory) -> tuple[Tensor, Memory, list[str]]:
        """Next iterates; a status for each row that cannot take a step, else ``""``."""


@dataclass(frozen=True)
class Progress:
    """The state of a solver between two steps, which an interrupt does not change."""

    iteration: int
    num_products: int  # each with all columns that take part
    X: Tensor  # [K, N]
    memory: Memory
    statuses: list[str]  # K, "" where a column is active
    norms: list[float]  # K, of the recurrence, or true ones
    residual_norms: list[float]  # K, true ones; nan where the iterate has moved since
    best: Tensor  # [K, N], iterates with the smallest of the true norms
    best_norms: list[float]  # K
    best_residual_norms: list[float]  # K
    anchors: list[float]  # K, true norms where columns were restarted
    history: list[list[float]]  # norms after each iteration; shared, later ones are void

    @property
    def active(self) -> list[int]:
        """Columns that have not ended."""
        return [k for k, status in enumerate(self.statuses) if not status]

    @staticmethod
    def at(X: Tensor, status: str, history: list[list[float]]) -> Progress:
        """A run at these iterates, of which only the norms are known."""
        n, norms = len(history) - 1, history[-1]
        statuses = [status] * len(X)
        return Progress(
            n, n, X, {}, statuses, norms, norms, X, norms, norms, norms, history
        )

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and words."""
        history = torch.tensor(self.history[: self.iteration + 1], dtype=torch.float64)
        return self.__dict__ | {"history": history}

    @staticmethod
    def of(state: dict[str, Any], device: torch.device) -> Progress:
        """The inverse of :meth:`state`."""
        tensors = {name: state[name].to(device) for name in ("X", "best")}
        memory = {name: t.to(device) for name, t in state["memory"].items()}
        history = state["history"].tolist()
        return Progress(**state | tensors | {"memory": memory, "history": history})


def iterate(
    method: Recurrence,
    X: Tensor,
    *,
    tolerances: list[float],
    maxiter: int,
    name: str,
    progressbar: bool = False,
    file: Checkpoint,
) -> Progress:
    """Take steps until every column has ended.

    Raises:
        FloatingPointError: If an iterate is no longer finite.
    """
    with torch.no_grad():
        state = file.load(finite=True)
        run = Progress.of(state, X.device) if state else _begin(method, X, tolerances)
        try:
            with tqdm(
                desc=name,
                initial=run.iteration,
                unit=" iterations",
                disable=not progressbar,
            ) as bar:
                while run.active and run.iteration < maxiter:
                    new = _advance(method, run, tolerances)
                    if file.due(run.num_products, new.num_products):
                        file.save(new.state())
                    run = new
                    bar.set_postfix_str(_furthest(run, tolerances), refresh=False)
                    bar.update()
            file.save(run.state())
            return _close(method, run, tolerances)
        except KeyboardInterrupt:
            file.save(run.state())
            return _interrupted(run)


def _begin(method: Recurrence, X: Tensor, tolerances: list[float]) -> Progress:
    K = len(X)
    rows, unknown = list(range(K)), [math.inf] * K
    return _verified(method, Progress.at(X, "", [unknown]), rows, tolerances)


def _advance(method: Recurrence, run: Progress, tolerances: list[float]) -> Progress:
    """A step, and the true residual where it seems small, or rounding may hide it."""
    new = _stepped(method, run)
    floors = new.memory["floor"].tolist()
    # a step so long that its rounding may hide the residual: checked before and after
    leaps = [
        k
        for k in new.active
        if run.norms[k] < 100 * floors[k] and run.norms[k] <= run.best_norms[k] / 2
    ]
    if leaps:
        new = _stepped(method, _verified(method, run, leaps, tolerances))
    near = []
    for k in new.active:
        norm, floor, best = new.norms[k], floors[k], new.best_norms[k]
        hidden = norm <= floor and (norm <= best / 2 or math.isinf(floor))
        if norm <= tolerances[k] or hidden or k in leaps:
            near.append(k)
    return _verified(method, new, near, tolerances) if near else new


def _close(method: Recurrence, run: Progress, tolerances: list[float]) -> Progress:
    """The true residuals of columns that have not converged."""
    run = replace(run, statuses=[s or "maxiter" for s in run.statuses])
    moved = [k for k, norm in enumerate(run.residual_norms) if math.isnan(norm)]
    return _verified(method, run, moved, tolerances) if moved else run


def _interrupted(run: Progress) -> Progress:
    """With the residuals of the recurrence, since a product may take long."""
    known = zip(run.residual_norms, run.memory["residual_norm"].tolist(), strict=True)
    return replace(
        run,
        statuses=[status or "interrupted" for status in run.statuses],
        residual_norms=[own if math.isnan(true) else true for true, own in known],
    )


def _stepped(method: Recurrence, run: Progress) -> Progress:
    """One step of the active columns."""
    rows = run.active
    memory = {n: _take(t, rows) for n, t in run.memory.items()}
    X, memory, words = method.step(_take(run.X, rows), memory)
    statuses, norms = run.statuses.copy(), run.norms.copy()
    residual_norms = run.residual_norms.copy()
    for k, word, norm in zip(rows, words, memory["norm"].tolist(), strict=True):
        statuses[k] = word
        if not word:
            norms[k], residual_norms[k] = norm, math.nan
    _check_finite(norms, run.iteration + 1)
    took = [i for i, word in enumerate(words) if not word]
    moved = [rows[i] for i in took]
    run.history[run.iteration + 1 :] = [norms]
    return replace(
        run,
        iteration=run.iteration + 1,
        num_products=run.num_products + 1,
        X=_put(run.X, moved, _take(X, took)),
        memory={n: _put(t, moved, _take(memory[n], took)) for n, t in run.memory.items()},
        statuses=statuses,
        norms=norms,
        residual_norms=residual_norms,
    )


def _verified(
    method: Recurrence, run: Progress, rows: list[int], tolerances: list[float]
) -> Progress:
    """Compute the true residuals of columns, and restart from them where needed."""
    fresh = method.start(rows, _take(run.X, rows))
    true_norms, residuals = fresh["norm"].tolist(), fresh["residual_norm"].tolist()
    _check_finite(true_norms, run.iteration)
    floors = run.memory["floor"].tolist() if run.memory else [math.inf] * len(run.X)
    statuses, norms = run.statuses.copy(), run.norms.copy()
    residual_norms, best_norms = run.residual_norms.copy(), run.best_norms.copy()
    best_residual_norms = run.best_residual_norms.copy()
    anchors, again = run.anchors.copy(), []
    for i, (k, norm) in enumerate(zip(rows, true_norms, strict=True)):
        drifted, helped = norm > DRIFT * norms[k], norm <= anchors[k] / 2
        broken = math.isinf(floors[k])
        if norm <= tolerances[k]:
            statuses[k] = "converged"
        elif not statuses[k] and (drifted or broken) and not helped:
            statuses[k] = "stagnated"
        elif not statuses[k] and (drifted or broken or norms[k] <= tolerances[k]):
            again.append(i)
            anchors[k] = norm
        norms[k], residual_norms[k] = norm, residuals[i]
    better = [k for k in rows if norms[k] <= best_norms[k]]
    best = _put(run.best, better, _take(run.X, better))
    # columns that cannot continue return to their best iterate
    stuck = [k for k in rows if statuses[k] in ("stagnated", "singular")]
    worse = [k for k in stuck if k not in better]
    X = _put(run.X, worse, _take(best, worse))
    for k in better:
        best_norms[k], best_residual_norms[k] = norms[k], residual_norms[k]
    for k in worse:
        norms[k], residual_norms[k] = best_norms[k], best_residual_norms[k]
    run.history[run.iteration :] = [norms]
    return replace(
        run,
        num_products=run.num_products + 1,
        X=X,
        memory=_restarted(run.memory, rows, fresh, again) if run.memory else fresh,
        statuses=statuses,
        norms=norms,
        residual_norms=residual_norms,
        best=best,
        best_norms=best_norms,
        best_residual_norms=best_residual_norms,
        anchors=anchors,
    )


def _restarted(memory: Memory, rows: list[int], fresh: Memory, again: list[int]) -> Memory:
    """The memory, with some of the rows restarted; the bound of ``‖A‖`` is kept."""
    kept = [rows[i] for i in again]
    new = {n: _put(t, kept, _take(fresh[n], again)) for n, t in memory.items()}
    return new | {"norm_A": torch.maximum(memory["norm_A"], new["norm_A"])}


def _take(t: Tensor, rows: list[int]) -> Tensor:
    """Some of the rows, in order; all of them without a copy."""
    return t if len(rows) == len(t) else t[rows]


def _put(t: Tensor, rows: list[int], new: Tensor) -> Tensor:
    """``t`` with some of its rows replaced, in order."""
    if len(rows) == len(t):
        return new
    return t.index_copy(0, torch.tensor(rows, dtype=torch.long, device=t.device), new)


def _check_finite(norms: list[float], iteration: int) -> None:
    if not all(math.isfinite(norm) for norm in norms):
        raise FloatingPointError(NOT_FINITE.format(iteration))


def _furthest(run: Progress, tolerances: list[float]) -> str:
    """The column that is furthest from its tolerance, for the bar."""
    gaps = zip(run.norms, tolerances, strict=True)
    norm, tolerance = max(gaps, key=lambda gap: gap[0] / (gap[1] or 1e-300))
    return f"residual {norm:.1e} of {tolerance:.1e}"
