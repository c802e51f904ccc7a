"""Mean and spread of independent samples, gathered in chunks."""

from __future__ import annotations

import math

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

from curvop.checkpoint import State
from curvop.scaling import unit


def no_moments(like: Tensor) -> State:
    """Before the first sample; ``like`` has the shape, dtype and device of one."""
    names = ("mean", "squares", "cubes", "slack", "unit")
    return {"count": 0, **dict.fromkeys(names, torch.zeros_like(like))}


def with_samples(
    state: State,
    samples: Tensor,
    slack: Tensor,
    size: Tensor | None = None,
    degree: int = 1,
) -> State:
    """The moments with more samples: sums of powers of the distance to the mean.

    They are merged as by Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances" (1982): stably where the spread is far below the mean.
    All are stored in a unit, a power of two near the largest sample (or slack) so far:
    squares and cubes of the samples themselves may over- or underflow.

    Args:
        state: The moments so far.
        samples: More samples, ``[K, *shape]``.
        slack: Error of each that is not random: rounding, truncation. ``[K, *shape]``.
        size: Samples and slack are given in units of ``size ** degree``; by default in
            units of 1.
        degree: The exponent of the unit.
    """
    if size is None:
        size = torch.maximum(unit(samples, 0), unit(slack, 0))[0]
        samples, slack = samples / size, slack / size
    larger = torch.maximum(state["unit"], size)
    here, past = (size / larger) ** degree, (state["unit"] / larger) ** degree
    samples, slack = samples * here, slack * here
    m, K = state["count"], samples.shape[0]
    n = m + K
    known = {
        name: state[name] * past**power
        for name, power in (("mean", 1), ("squares", 2), ("cubes", 3), ("slack", 1))
    }
    mean = samples.mean(0)
    squares, cubes = ((samples - mean).pow(power).sum(0) for power in (2, 3))
    d = mean - known["mean"]
    return state | {
        "count": n,
        "unit": larger,
        "mean": known["mean"] + d * (K / n),
        "squares": known["squares"] + squares + d.square() * (m * K / n),
        "cubes": known["cubes"]
        + cubes
        + d.pow(3) * (m * K * (m - K) / n**2)
        + 3 * d * (m * squares - K * known["squares"]) / n,
        "slack": known["slack"] + (slack.mean(0) - known["slack"]) * (K / n),
    }


def relative_error(state: State) -> Tensor:
    """Standard error of the mean in its unit; ``nan`` from fewer than two samples.

    Slack is included. It is widened for few samples, and for skewed ones: by the correction
    ``(2 z² + 1) γ / (6 √m)`` of the quantile ``z = 3`` (Johnson, 1978), without which it
    would be too small too often for the mean of 20 squares, for instance.
    """
    m, squares = state["count"], state["squares"]
    if m < 2:
        return torch.full_like(state["mean"], math.nan)
    skewness = (state["cubes"] / m / (squares / m).pow(1.5)).nan_to_num(0, 0, 0)
    factor = student_factor(m) * (1 + skewness.abs() * (19 / 18 / math.sqrt(m)))
    return torch.hypot(factor * (squares / (m * (m - 1))).sqrt(), state["slack"])


def mean_and_error(state: State) -> tuple[Tensor, Tensor]:
    """The mean and its standard error."""
    return state["mean"] * state["unit"], relative_error(state) * state["unit"]


def student_factor(count: int) -> float:
    """Factor that widens the standard error from few samples.

    With it, three standard errors cover the truth as often as three standard deviations of
    a normal variable, 99.7 % (Student, 1908): 2.2 for 5 samples, 1.2 for 20.
    """
    return float(stdtrit(count - 1, ndtr(3.0))) / 3.0
