"""The effective dimension at all dampings at once, from the rules of a spectral density."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvop.estimators import gauss_radau, student_factor, tridiagonals
from curvop.operators import DiagonalLinearOperator


@dataclass(frozen=True)
class EffectiveDimension:
    """Effective dimensions with their standard errors."""

    damping: Tensor  # [n], λ, ascending
    values: Tensor  # [n], d(λ)
    standard_error: Tensor  # [n], of spread and truncation; nan from one probe

    def nearest(self, share: float) -> int:
        """Where the damping is about this share of the largest."""
        return int((self.damping / self.damping[-1] - share).abs().argmin())


def effective_dimensions(
    nodes: Tensor, weights: Tensor, N: int, steps: int, *, psd: bool, num_points: int = 31
) -> EffectiveDimension:
    r"""Directions whose curvature exceeds the damping, against the damping.

    .. math:: d(λ) = \sum_i \frac{\max(λ_i, 0)}{\max(λ_i, 0) + λ}
        ≈ \frac{N}{p} \sum_{l=1}^p \sum_{j=1}^m τ_{lj} \frac{θ_{lj}^+}{θ_{lj}^+ + λ}

    with the Gauss rules ``(θ, τ)`` that a density consists of: no further product.
    Negative eigenvalues count as zero. Truncation is bounded for psd matrices, and taken
    from the last doubling of the steps for others, as in
    :func:`curvop.effective_dimension`.

    Args:
        nodes: ``θ``, ``[p, m]``.
        weights: ``τ``, ``[p, m]``.
        N: Size of the matrix.
        steps: Lanczos steps that were to be made; a run that ended before them, or has
            ``N``, is exact.
        psd: Whether it is known to be positive semi-definite.
        num_points: Number of dampings, from a millionth of the largest curvature up.

    Returns:
        The dimensions; zero where no curvature is positive.
    """
    largest = float(nodes.max())
    scale = largest if largest > 0 else float(nodes.abs().max()) or 1.0
    damping = scale * torch.logspace(-6, 0, num_points, dtype=torch.float64)
    T, is_whole = _tridiagonal(nodes, weights, steps)
    is_whole |= steps >= N
    p, m = nodes.shape
    if psd:  # the truth is between the Gauss rule and that with a node at zero
        other, doublings = gauss_radau(T), 1.0
    else:  # what the last doubling changed, for each that is left
        size = (m + 1) // 2
        other, doublings = T[:, :size, :size], max(1.0, math.log2(N / m))
    samples = N * _quadrature(nodes.double(), weights.double(), damping)
    theta, vectors = torch.linalg.eigh(other)
    change = (samples - N * _quadrature(theta, vectors[:, 0].square(), damping)).abs()
    slack = (doublings * change).where(~is_whole[:, None], 0.0).mean(0)
    error = torch.full_like(damping, math.nan)
    if p > 1:
        error = torch.hypot(student_factor(p) * samples.std(0) / math.sqrt(p), slack)
    return EffectiveDimension(damping, samples.mean(0), error)


def _quadrature(nodes: Tensor, weights: Tensor, damping: Tensor) -> Tensor:
    """``Σ τ θ / (θ + λ)`` of each rule at each damping, ``[p, n]``."""
    x = nodes.clamp(min=0)[:, None, :]
    return (weights[:, None, :] * x / (x + damping[:, None])).sum(-1)


def _tridiagonal(nodes: Tensor, weights: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The matrices whose Gauss rules these are, ``[p, m, m]``, and which are whole.

    A rule that ended early spans an invariant space: it is exact.
    """
    m = nodes.shape[1]
    matrices, whole = [], []
    for theta, tau in zip(nodes.double(), weights.double(), strict=True):
        V = tau.sqrt()[:, None]
        A = DiagonalLinearOperator(theta)
        *_, (T, _) = tridiagonals(A, V / V.norm(), [m], 0)
        size = T.shape[-1]
        whole.append(min(size, int(tau.count_nonzero())) < steps)
        # continued by its first entry, decoupled
        full = T[0, 0, 0] * torch.eye(m, dtype=torch.float64)
        full[:size, :size] = T[0]
        matrices.append(full)
    return torch.stack(matrices), torch.tensor(whole)
