"""The trace of one function's Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvop.curvature.kernels import differentiable_kernels
from curvop.estimate import Estimate
from curvop.functional.structure import Structure, gradient, parameters, pull

# Share of the coordinates that a sparse probe moves.
DENSITY = 0.1


def hessian_trace(
    func: Callable[[], Tensor],
    params: Structure,
    num_samples: int = 10,
    sparse: bool = False,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Estimate the trace of a function's Hessian, with its standard error.

    .. math:: \operatorname{tr} H ≈ \frac{1}{m} \sum_{i=1}^m v_i^⊤ H v_i,
        \qquad \mathbb{E}[v_i v_i^⊤] = I

    (Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990).
    The samples share one gradient graph.

    Args:
        func: Closure over the parameters that returns a real scalar.
        params: The parameters: a tensor, or a list, tuple or dict of tensors.
        num_samples: Number ``m`` of probes.
        sparse: Probes that move each coordinate with probability ``s = 0.1`` only, by
            ``±1/√s``: as unbiased as dense ones (Rademacher, ``±1``), whose variance
            ``2 Σ_{i≠j} Hᵢⱼ²`` grows by ``(1/s - 1) Σᵢ Hᵢᵢ²``.
        generator: Source of the probes; by default a fresh one, so that the global
            generator is left alone and each call draws others.

    Returns:
        The estimate; its ``standard_error`` is ``nan`` for one sample.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or ``func`` returns no scalar.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> float(hessian_trace(lambda: (w**3).sum(), w))
    18.0
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"Expected a positive number of samples, got {num_samples!r}.")
    ps = parameters(params)
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    samples = []
    with torch.enable_grad(), differentiable_kernels():
        g = gradient(func, ps, create_graph=True)
        for _ in range(num_samples):
            v = [_probe(p, sparse, generator) for p in ps]
            Hv = pull(g, ps, v)
            dots = [(a.double() * b.double()).sum() for a, b in zip(v, Hv, strict=True)]
            samples.append(float(torch.stack(dots).sum()))
    values = torch.tensor(samples, dtype=torch.float64)
    error = float(values.std() / num_samples**0.5) if num_samples > 1 else float("nan")
    return Estimate(float(values.mean()), error, num_samples)


def _probe(p: Tensor, sparse: bool, generator: torch.Generator) -> Tensor:
    """Signs, on all coordinates or on some of them, scaled to unit covariance."""
    device = generator.device
    signs = torch.randint(0, 2, p.shape, generator=generator, device=device) * 2.0 - 1.0
    if sparse:
        chosen = torch.rand(p.shape, generator=generator, device=device) < DENSITY
        signs = signs * chosen / DENSITY**0.5
    return signs.to(p)
