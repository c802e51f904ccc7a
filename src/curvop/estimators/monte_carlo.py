"""Means over probes: independent signs, or all unit vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from curvop.checkpoint import Checkpoint, State
from curvop.estimators.moments import no_moments, relative_error, with_samples
from curvop.estimators.options import Options
from curvop.estimators.probes import probes, working_dtype
from curvop.estimators.sequential import Estimator, Outcome, run
from curvop.operators import LinearOperator


class Samples(NamedTuple):
    """Values of a quadratic form at a chunk of probes."""

    values: Tensor  # [K, *shape]
    slack: Tensor  # [K, *shape], their errors that are not random
    num_matvecs: int
    unit: Tensor | None = None  # [*shape], if they are in units of its power


Form = Callable[[Tensor, int], Samples]
"""``(V, n) ->`` samples at the columns ``V`` ``[N, K]``, after ``n`` products.

The quantity to estimate is their mean over sign probes, or their sum over unit vectors."""

Finish = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From mean and standard error, and their unit, to value and standard error."""


def _as_it_is(mean: Tensor, error: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    return mean * unit, error * unit


@dataclass(frozen=True)
class Sampling:
    """A quadratic form to be sampled.

    Attributes:
        A: The matrix.
        form: The quadratic form.
        like: Tensor of the shape, dtype and device of one sample.
        chunk_size: Most probes at once.
        cost: Most products per probe.
        degree: Degree of the form in the matrix, the exponent of the unit of samples.
        finish: The result from the mean.
    """

    A: LinearOperator
    form: Form
    like: Tensor
    chunk_size: int
    cost: int = 1
    degree: int = 1
    finish: Finish = _as_it_is

    def step(self, state: State, V: Tensor) -> State:
        """More samples, at the columns of ``V``."""
        values, slack, n, unit = self.form(V, state["num_matvecs"])
        more = with_samples(state, values, slack, unit, self.degree)
        return {**more, "num_matvecs": state["num_matvecs"] + n}


class SignProbes(Estimator):
    """The mean over random signs (Hutchinson, 1990)."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def start(self, generator: Generator) -> State:
        """No samples."""
        return {**no_moments(self._sampling.like), "num_matvecs": 0}

    def cost(self, state: State) -> int:
        """The same for each."""
        return self._sampling.cost

    def step(self, state: State, most: int, generator: Generator) -> State:
        """More probes."""
        s = self._sampling
        V = probes("signs", s.A, min(most, s.chunk_size), generator)
        return s.step(state, V)

    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """The result from the mean."""
        return self._sampling.finish(state["mean"], relative_error(state), state["unit"])


class UnitVectors(Estimator):
    """The sum over all unit vectors, in random order: the exact value.

    Until the last one it is an estimate, ``N`` times the mean over a sample without
    replacement.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def start(self, generator: Generator) -> State:
        """No samples, and their order."""
        s = self._sampling
        N, device = s.A.shape[1], generator.device
        order = torch.randperm(N, generator=generator, device=device)
        return {**no_moments(s.like), "num_matvecs": 0, "order": order}

    def cost(self, state: State) -> int:
        """The same for each."""
        return self._sampling.cost

    def step(self, state: State, most: int, generator: Generator) -> State:
        """More unit vectors."""
        s, count = self._sampling, state["count"]
        A = s.A
        which = state["order"][count : count + min(most, s.chunk_size)].to(A.device)
        K = len(which)
        V = torch.zeros(A.shape[1], K, dtype=working_dtype(A), device=A.device)
        V[which, torch.arange(K, device=A.device)] = 1
        return s.step(state, V)

    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """``N`` times the mean; the error vanishes when all have been visited."""
        s, count = self._sampling, state["count"]
        N, slack = s.A.shape[1], state["slack"]
        error = slack
        if count < N:
            chance = relative_error({**state, "slack": torch.zeros_like(slack)})
            error = torch.hypot(chance * (1 - count / N) ** 0.5, slack)
        return s.finish(N * state["mean"], N * error, state["unit"])


def mean_over_probes(sampling: Sampling, options: Options) -> Outcome:
    """Sample until the options are met."""
    signs, units = SignProbes(sampling), UnitVectors(sampling)
    A = sampling.A
    return run(signs, units, A.shape[1], options, Checkpoint(None))
