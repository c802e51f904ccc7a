"""Mean and spread of independent samples, gathered in chunks."""

from __future__ import annotations

import math

import torch
from scipy.special import ndtr, stdtrit
from torch import Tensor

from curvop.checkpoint import State


def no_moments(like: Tensor) -> State:
    """Before the first sample; ``like`` has the shape, dtype and device of one."""
    names = ("mean", "squares", "cubes", "slack")
    return {"count": 0, **dict.fromkeys(names, torch.zeros_like(like))}


def with_samples(state: State, samples: Tensor, slack: Tensor) -> State:
    """The moments with more samples: sums of powers of the distance to the mean.

    They are merged as by Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances" (1982): stably where the spread is far below the mean.

    Args:
        state: The moments so far.
        samples: More samples, ``[K, *shape]``.
        slack: What each may be off by for other reasons than chance: rounding,
            truncation. ``[K, *shape]``.
    """
    m, K = state["count"], samples.shape[0]
    n = m + K
    mean = samples.mean(0)
    squares, cubes = ((samples - mean).pow(power).sum(0) for power in (2, 3))
    d = mean - state["mean"]
    return state | {
        "count": n,
        "mean": state["mean"] + d * (K / n),
        "squares": state["squares"] + squares + d.square() * (m * K / n),
        "cubes": state["cubes"]
        + cubes
        + d.pow(3) * (m * K * (m - K) / n**2)
        + 3 * d * (m * squares - K * state["squares"]) / n,
        "slack": state["slack"] + (slack.mean(0) - state["slack"]) * (K / n),
    }


def standard_error(state: State) -> Tensor:
    """Standard error of the mean, slack included; ``nan`` from fewer than two samples.

    It is widened for few samples, and for skew ones: by the correction ``(2 z² + 1) γ /
    (6 √m)`` of the quantile ``z = 3`` (Johnson, 1978), without which the mean of, say, 20
    squares is too small too often.
    """
    m, squares = state["count"], state["squares"]
    if m < 2:
        return torch.full_like(state["mean"], math.nan)
    skewness = (state["cubes"] / m / (squares / m).pow(1.5)).nan_to_num(0, 0, 0)
    factor = widening(m) * (1 + skewness.abs() * (19 / 18 / math.sqrt(m)))
    return torch.hypot(factor * (squares / (m * (m - 1))).sqrt(), state["slack"])


def leave_one_out_error(values: Tensor, effects: Tensor) -> Tensor:
    r"""Standard error of the mean of estimates that leave out one probe each.

    They are dependent, so that their spread alone can be far too small. With ``dᵢⱼ``, the
    effect of probe ``i`` on the estimate ``tⱼ``,

    .. math:: \operatorname{Var} \bar t =
        \mathbb{E}\left[\frac{s^2}{k} + \operatorname{mean}_{i≠j} d_{ij} d_{ji}\right].

    For ``tᵢ`` and ``tⱼ - dᵢⱼ`` are uncorrelated, as the latter does not depend on probe
    ``i``, over which ``tᵢ`` is unbiased; the covariance of ``tᵢ`` and ``tⱼ`` remains.

    Args:
        values: The estimates ``tⱼ``, ``[*shape, k]``.
        effects: ``dᵢⱼ`` at ``[*shape, i, j]``.
    """
    k = values.shape[-1]
    both = effects * effects.mT
    shared = (both.sum((-2, -1)) - both.diagonal(dim1=-2, dim2=-1).sum(-1)) / (k * (k - 1))
    return widening(k) * (values.var(-1) / k + shared.clamp(min=0)).sqrt()


def widening(count: int) -> float:
    """Factor by which the spread of few samples is known too badly.

    With it, three standard errors cover as often as three standard deviations of a
    normal variable, 99.7 % (Student, 1908): 2.2 for 5 samples, 1.2 for 20.
    """
    return float(stdtrit(count - 1, ndtr(3.0))) / 3.0
