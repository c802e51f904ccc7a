"""Sequential estimation: chunk after chunk of products, until the error is small."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Generator, Tensor
from tqdm import tqdm

from curvop.checkpoint import Checkpoint, State
from curvop.estimators.options import UNLIMITED, Options

# Samples before a standard error may end a run. From few samples it is sometimes far too
# small; a run that stops at such a moment would be wrong too often.
FIRST_LOOK = 20


class Estimator(ABC):
    """An estimate that improves with each product.

    An estimator is a value, and so are its states: a step makes a new one. Each state
    counts its products (``"num_matvecs"``) and the samples for its error (``"count"``).
    """

    @abstractmethod
    def start(self, generator: Generator) -> State:
        """The state before the first product."""

    @abstractmethod
    def cost(self, state: State) -> int:
        """Most products that one more sample takes."""

    @abstractmethod
    def step(self, state: State, most: int, generator: Generator) -> State:
        """The state after another chunk, of one to ``most`` samples."""

    @abstractmethod
    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """Value and standard error, ``nan`` as long as there are too few samples."""

    def refined(self, state: State, need: float) -> State:
        """The state to go on from, if so many samples are needed; 0 counted: afresh."""
        return state


class Outcome(NamedTuple):
    """The result of a run."""

    value: Tensor
    standard_error: Tensor
    num_matvecs: int


def run(
    estimator: Estimator,
    exact: Estimator,
    N: int,
    options: Options,
    file: Checkpoint,
    *,
    interruptible: bool = False,
) -> Outcome:
    """Sample until the products are used up, or the standard error is small enough.

    If there are enough products for the exact value, that is computed: at once without a
    tolerance, otherwise after sampling has taken as many without success.

    Args:
        estimator: Samples.
        exact: Computes the exact value from all ``N`` unit vectors.
        N: Their number.
        options: When to stop.
        file: Checkpoint to continue from, written every few products.
        interruptible: Whether Ctrl-C ends the run with the estimate so far.
    """
    generator = options.generator
    estimators = {False: estimator, True: exact}
    state = {
        **estimator.start(generator),
        "exact": False,
        "look": FIRST_LOOK,
        "generator": generator.get_state(),
    }
    if (found := file.load(finite=True)) is not None:
        state = _placed(found, state)
        generator.set_state(state["generator"])
    total = options.num_matvecs if options.num_matvecs < UNLIMITED else None
    # even a bar that is not shown starts a thread
    bar = (
        tqdm(total=total, initial=state["num_matvecs"], unit="product")
        if options.progressbar
        else None
    )
    with bar or contextlib.nullcontext():
        try:
            while (new := _advanced(estimators, N, options, state)) is not None:
                new["generator"] = generator.get_state()
                if file.due(state["num_matvecs"], new["num_matvecs"]):
                    file.save(new)
                state, before = new, state
                if bar is not None:
                    bar.set_postfix_str(_show(*estimators[state["exact"]].estimate(state)))
                    bar.update(state["num_matvecs"] - before["num_matvecs"])
        except KeyboardInterrupt:
            if not interruptible:
                raise
            generator.set_state(state["generator"])
    file.save(state)
    return Outcome(*estimators[state["exact"]].estimate(state), state["num_matvecs"])


def _placed(found: State, start: State) -> State:
    """The state that was read, on the devices of the run."""
    return {
        name: value.to(start[name].device)
        if isinstance(value, Tensor) and name in start
        else value
        for name, value in found.items()
    }


def _advanced(
    estimators: dict[bool, Estimator], N: int, options: Options, state: State
) -> State | None:
    """The state after the next chunk of products; ``None`` at the end."""
    estimator, exact = estimators[False], estimators[True]
    generator, n, count = options.generator, state["num_matvecs"], state["count"]
    room = options.num_matvecs - n
    if state["exact"]:
        return exact.step(state, N - count, generator) if count < N else None
    if options.tol is not None and count >= state["look"]:
        error = float(estimator.estimate(state)[1].max())
        if error <= options.tol:
            return None
        ratio = error / options.tol
        need = count * ratio * ratio  # infinite, where a power would raise an error
        state = estimator.refined(state, need)
        later = math.ceil(min(max(need, 1.25 * count), 2 * count))
        state = {**state, "look": later if state["count"] else FIRST_LOOK}
    whole = N * exact.cost(state)
    hopeless = max(n, FIRST_LOOK * estimator.cost(state)) >= whole
    if room >= whole and (options.tol is None or hopeless):
        start = {**exact.start(generator), "num_matvecs": n}
        return exact.step({**state, **start, "exact": True}, N, generator)
    most = room // estimator.cost(state)
    if options.tol is not None:
        most = min(most, state["look"] - state["count"])
    return estimator.step(state, most, generator) if most >= 1 else None


def _show(value: Tensor, standard_error: Tensor) -> str:
    """``2.00 ± 0.10``, for instance; of many values the sum and the largest error."""
    return f"{float(value.sum()):.4g} ± {float(standard_error.max()):.2g}"
