"""The trace of one function's Hessian."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
from torch import Generator, Tensor

from curvop.autograd import gradient, graph_vjp
from curvop.estimate import Estimate
from curvop.functional.evaluation import differentiable_twice, evaluate
from curvop.functional.structure import Structure, parameters
from curvop.generators import source

# Share of the coordinates that a sparse probe moves (Achlioptas, 2003).
DENSITY = 1 / 3


@overload
def hessian_trace(
    func: Callable[[], Tensor],
    params: Structure,
    num_samples: int = 10,
    create_graph: Literal[False] = False,
    sparse: bool = False,
    *,
    generator: Generator | None = None,
) -> Estimate: ...


@overload
def hessian_trace(
    func: Callable[[], Tensor],
    params: Structure,
    num_samples: int = 10,
    *,
    create_graph: Literal[True],
    sparse: bool = False,
    generator: Generator | None = None,
) -> Estimate[Tensor]: ...


@overload
def hessian_trace(
    func: Callable[[], Tensor],
    params: Structure,
    num_samples: int,
    create_graph: Literal[True],
    sparse: bool = False,
    *,
    generator: Generator | None = None,
) -> Estimate[Tensor]: ...


def hessian_trace(
    func: Callable[[], Tensor],
    params: Structure,
    num_samples: int = 10,
    create_graph: bool = False,
    sparse: bool = False,
    *,
    generator: Generator | None = None,
) -> Estimate | Estimate[Tensor]:
    r"""Estimate the trace of a function's Hessian, with its standard error.

    .. math:: \operatorname{tr} H ≈ \frac{1}{m} \sum_{i=1}^m v_i^⊤ H v_i,
        \qquad \mathbb{E}[v_i v_i^⊤] = I

    (Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990).
    The samples share one gradient graph. Probes are signs, ``±1`` in each coordinate: a
    sample has the variance ``2 Σ_{i≠j} Hᵢⱼ²``, none for a diagonal Hessian.

    Sparse probes move ``k = ⌈P/3⌉`` coordinates, drawn without replacement, by
    ``±√(P/k)`` (after Achlioptas, "Database-friendly random projections", 2003). They
    are unbiased, too. Their samples have the variance

    .. math:: \frac{P (k-1)}{k (P-1)} \, 2 \sum_{i≠j} H_{ij}^2
        + \frac{P (P-k)}{k (P-1)} \sum_i (H_{ii} - \bar h)^2,
        \qquad \bar h = \operatorname{tr} H / P,

    at most that of Gaussian probes, and close to that of dense signs if the entries of the
    diagonal are nearly equal.

    Args:
        func: Closure over the parameters that returns a real scalar.
        params: The parameters: a tensor, or a list, tuple or dict of tensors.
        num_samples: Number ``m`` of probes, with a Hessian-vector product each.
        create_graph: Whether the value can be differentiated: it is then a scalar tensor,
            whose gradient is an unbiased estimate of that of the trace. Norm layers are
            composed of primitives, since torch's own have wrong third derivatives.
        sparse: Whether probes move only some of the coordinates.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system: each call draws others. No global generator is touched.

    Returns:
        The estimate. Its standard error is that of the mean of the samples; ``nan`` for
        one sample.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or ``func`` does not return a finite scalar
            that depends on tensors.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> float(hessian_trace(lambda: (w**3).sum(), w))
    18.0
    >>> trace = hessian_trace(lambda: (w**3).sum(), w, 8, create_graph=True)
    >>> torch.autograd.grad(trace.value, w)
    (tensor([6., 6.]),)
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"Expected a positive number of samples, got {num_samples!r}.")
    generator = source(generator)
    ps = list(parameters(params).values())
    with differentiable_twice(ps, func, again=create_graph):
        g = gradient(evaluate(func), ps, create_graph=True)
        samples = []
        for _ in range(num_samples):
            v = _probe(ps, sparse, generator)
            Hv = graph_vjp(g, ps, v, create_graph=create_graph, keep=True)
            samples.append(_dot(v, Hv))
        values = torch.stack(samples)
        mean = values.mean()
    values = values.detach()
    error = float(values.std()) / math.sqrt(num_samples) if num_samples > 1 else math.nan
    if create_graph:
        dtype = functools.reduce(torch.promote_types, [p.dtype for p in ps])
        return Estimate(mean.to(dtype), error, num_samples)
    return Estimate(float(mean), error, num_samples)


def _probe(ps: Sequence[Tensor], sparse: bool, generator: Generator) -> list[Tensor]:
    """Signs, on all coordinates or on some of them, scaled to unit covariance."""
    sizes = [p.numel() for p in ps]
    P, device = sum(sizes), generator.device
    v = torch.randint(0, 2, (P,), generator=generator, device=device) * 2 - 1
    scale = 1.0
    if sparse:
        k = math.ceil(P * DENSITY)
        v[torch.randperm(P, generator=generator, device=device)[k:]] = 0
        scale = math.sqrt(P / k)
    blocks = zip(v.split(sizes), ps, strict=True)
    return [b.reshape(p.shape).to(p) * scale for b, p in blocks]


def _dot(v: Sequence[Tensor], w: Sequence[Tensor]) -> Tensor:
    products = [(a.double() * b.double()).sum() for a, b in zip(v, w, strict=True)]
    return torch.stack([p.to(products[0].device) for p in products]).sum()
