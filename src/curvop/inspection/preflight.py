"""Every way to differentiate a model, tried on a few data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curvop.autograd import differentiable_kernels
from curvop.inspection.baseline import baselines
from curvop.inspection.cautions import cautions
from curvop.inspection.forecast import forecast
from curvop.inspection.observation import Observation, observe
from curvop.inspection.problem import MATRICES, Problem, name_of, understood
from curvop.inspection.results import Preflight
from curvop.inspection.sample import take
from curvop.inspection.trials import FORMS, PLAIN, WAYS, Trial, Way, attempt
from curvop.risk import Divisor, Given, Unpack, as_parameters, listed, preserved

SHARE = 1 / 100  # of the time that there is, for a product of the forecast
NO_TERMS = "the empirical Fisher needs a loss that offers its unreduced terms"


def preflight(
    model_func: nn.Module | Callable[..., Any],
    loss_func: Callable[[Any, Any], Tensor],
    params: Given,
    data: Iterable[Any],
    *,
    sample_size: int = 8,
    max_seconds: float = 10.0,
    num_data: int | None = None,
    batch_size_fn: Callable[[Any], int] | None = None,
    reduction: Literal["mean", "sum"] | Divisor | None = None,
    unpack: Unpack | None = None,
) -> Preflight:
    r"""Try every way to differentiate a model, and report which work and are right.

    On a few data of the first batch, Hessian, GGN and empirical Fisher are multiplied with
    the same vector in each way that the library has, plain and linearised. Each product is
    compared with finite differences of first derivatives in double precision, as in the
    proof of operators,

    .. math:: H v ≈ \frac{g(θ + h v) - g(θ - h v)}{2 h},

    so that a custom function with a wrong second derivative is found. A way that fails is a
    result, not an error. Model, ``.grad``, buffers, generators and modes are not changed.

    Args:
        model_func: As for :class:`CurvatureLinearOperator`, as are the next three.
        loss_func: A loss of unknown reduction is a caution here, not an error.
        params: The parameters.
        data: The data. Two batches are loaded; all are counted if that needs no pass.
        sample_size: Number of data of the first batch to try the ways on. A batch whose
            tensors do not share their leading axis is taken whole.
        max_seconds: Time after which nothing further is tried.
        num_data: Number of data in all, if the source has no length; only for the
            forecast.
        batch_size_fn: As for the operators.
        reduction: As for the operators.
        unpack: As for the operators.

    Returns:
        The results. Print them for a table; ``to_dict()`` and ``to_json()`` give plain
        data.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit; the message says how to fix it.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    >>> data = [(torch.randn(16, 3), torch.randn(16, 4))]
    >>> found = preflight(model, torch.nn.MSELoss(), list(model.parameters()), data)
    >>> found.is_ready
    True
    >>> found.trial("Hessian", "backpack").verdict
    'right'
    """
    deadline = time.perf_counter() + _checked(sample_size, max_seconds)
    problem = Problem(
        model_func,
        loss_func,
        listed(params),
        data,
        reduction=reduction,
        batch_size_fn=batch_size_fn,
        unpack=unpack,
    )
    parameters = as_parameters(model_func, problem.params, loss_func)
    with _as_found(parameters.device):
        sample = take(problem, parameters, sample_size, num_data)
        seen = observe(understood(problem, parameters, sample.batch), sample)
        return _carried_out(seen, max_seconds, deadline)


def _carried_out(seen: Observation, max_seconds: float, deadline: float) -> Preflight:
    """The references, the quick ways, the forecast, the others, the cautions."""
    given, sample = seen.given, seen.sample
    ready = baselines(seen)
    quick = [way for way in PLAIN if way != "differences"]
    trials = [attempt(base, way, deadline) for way in quick for base in ready]
    allowed = max_seconds * SHARE
    forecasts = tuple(forecast(seen, base, allowed, deadline) for base in ready)
    chosen = {(f.matrix, way) for f in forecasts for way in (f.way, f.form)}
    later: tuple[Way, ...] = (*FORMS, "differences")
    slow = [(base, way) for way in later for base in ready]
    slow.sort(key=lambda pair: (pair[0].matrix, pair[1]) not in chosen)
    trials += [attempt(base, way, deadline) for base, way in slow]
    if given.loss.terms is None:
        trials += [Trial("EF", way, "undefined", NO_TERMS) for way in WAYS]
    trials = [replace(t, is_chosen=(t.matrix, t.way) in chosen) for t in trials]
    trials.sort(key=lambda t: (MATRICES.index(t.matrix), WAYS.index(t.way)))
    return Preflight(
        model=name_of(given.problem.model),
        num_parameters=sum(p.numel() for p in given.parameters.tensors),
        dtype=str(given.parameters.dtype)[6:],
        device=str(given.parameters.device),
        loss=name_of(given.problem.loss),
        reduction=given.loss.reduction,
        sample_size=sample.size,
        num_data=sample.num_data,
        num_batches=sample.num_batches,
        gradient_seconds=ready[0].gradient_seconds,
        gradient_bytes=ready[0].gradient_bytes,
        references=tuple(base.reference for base in ready),
        trials=tuple(trials),
        forecasts=forecasts,
        cautions=cautions(seen, forecasts, ready[0].is_gradient),
        seconds=time.perf_counter() - (deadline - max_seconds),
    )


@contextmanager
def _as_found(device: torch.device) -> Iterator[None]:
    with preserved(device), torch.inference_mode(False), differentiable_kernels():
        yield


def _checked(sample_size: Any, max_seconds: Any) -> float:
    if not isinstance(sample_size, Integral) or isinstance(sample_size, bool):
        raise TypeError(
            f"Expected sample_size as an integer, got {type(sample_size).__name__}."
        )
    if sample_size < 1:
        raise ValueError(f"Expected sample_size of at least 1, got {sample_size}.")
    if not isinstance(max_seconds, int | float) or isinstance(max_seconds, bool):
        raise TypeError(
            f"Expected max_seconds as a number, got {type(max_seconds).__name__}."
        )
    if not 0 < max_seconds < math.inf:
        raise ValueError(f"Expected a positive, finite max_seconds, got {max_seconds}.")
    return float(max_seconds)
