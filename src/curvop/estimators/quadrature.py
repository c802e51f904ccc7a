"""Stochastic Lanczos quadrature, with a bound of its truncation error."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from curvop.estimate import Estimate
from curvop.estimators.monte_carlo import Samples, Sampling, mean_over_probes
from curvop.estimators.options import Options
from curvop.estimators.probes import multiply
from curvop.operators import LinearOperator
from curvop.scaling import norms, unit

Function = Callable[[Tensor], Tensor]
Truncation = Callable[[Tensor, Tensor, Function, int], Tensor]
"""``(T, value of its quadrature, f, N) ->`` a bound of the truncation error."""

FEWEST_PROBES = 10
# Sizes of a Krylov space at which the truncation error is computed.
LOOKS = [size for i in range(2, 16) for size in (2 * 2**i, 3 * 2**i)]
# Truncation error, relative to the value, that is small beside the spread over probes.
TRUNCATION = 1e-3


def estimated(
    A: LinearOperator, f: Function, chosen: Options, truncation_of: Truncation
) -> Estimate:
    """The mean of ``vᵀ f(A) v`` over random signs."""
    N, tol = A.shape[1], chosen.tol
    steps = min(chosen.num_matvecs // FEWEST_PROBES, N)
    sizes = [p for p in LOOKS if p < steps] + [steps]

    def form(V: Tensor, before: int) -> Samples:
        squares = V.square().sum(0)
        scale = squares.to("cpu", torch.float64)
        for T, invariant in tridiagonals(A, V / squares.sqrt(), sizes, before):
            value, size, rounding = quadrature(T, f, torch.finfo(A.dtype).eps)
            truncation = torch.where(invariant, 0.0, truncation_of(T, value, f, N))
            goal = TRUNCATION * scale * size if tol is None else torch.tensor(tol / 4)
            if (scale * truncation).mean() <= goal.mean():
                break
        slack = truncation + rounding
        return Samples(scale * value, scale * slack, T.shape[-1] * V.shape[1])

    like = torch.zeros((), dtype=torch.float64)
    sampling = Sampling(A, form, like, chosen.chunk_size, cost=steps)
    value, error, n = mean_over_probes(sampling, chosen)
    return Estimate(float(value), float(error), n)


def tridiagonals(
    A: LinearOperator, V: Tensor, sizes: Collection[int], before: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Lanczos for all columns at once: ``T`` on the Krylov space of each, of size ``p``.

    The spaces are independent, and share products. All vectors are kept orthogonal.

    An invariant space cannot grow: its ``T`` is continued by decoupled copies of its
    first entry. When all are invariant, the last ``T`` follows at once.

    Args:
        A: A symmetric matrix.
        V: First vectors ``[N, K]``, of norm 1.
        sizes: The ``p`` at which to yield ``T``; the largest is the last.
        before: Number of products before these.

    Yields:
        ``T``, ``[K, p, p]``, on the CPU in double precision, and which of the spaces
        are invariant, ``[K]``.
    """
    N, K = V.shape
    eps = torch.finfo(A.dtype).eps
    basis = [V]
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    invariant = torch.zeros(K, dtype=torch.bool, device=V.device)
    size = V.new_zeros(K)
    for p in range(1, max(sizes) + 1):
        W = multiply(A, basis[-1], before + (p - 1) * K)
        alpha = (W * basis[-1]).sum(0)
        alphas.append(torch.where(invariant, alphas[0], alpha) if alphas else alpha)
        size = torch.maximum(size, norms(W, 0))
        for _ in range(2):
            for U in basis:
                W = W - U * (U * W).sum(0)
        beta = norms(W, 0)
        invariant = invariant | (beta <= 100 * eps * size) | (p == N)
        if p in sizes or invariant.all():
            yield _tridiagonal(alphas, betas), invariant.cpu()
        if invariant.all():
            return
        betas.append(torch.where(invariant, 0, beta))
        basis.append(torch.where(invariant, 0, W / beta))


def _tridiagonal(alphas: list[Tensor], betas: list[Tensor]) -> Tensor:
    """``[K, p, p]`` from ``p`` and ``p - 1`` entries ``[K]``."""
    T = torch.stack(alphas, -1).diag_embed()
    if betas:
        off = torch.stack(betas, -1)
        T = T + off.diag_embed(1) + off.diag_embed(-1)
    return T.to("cpu", torch.float64)


def last_doubling(T: Tensor, value: Tensor, f: Function, N: int) -> Tensor:
    """Effect of the last doubling, times the doublings until the space is the whole."""
    p = T.shape[-1]
    half = T[:, : (p + 1) // 2, : (p + 1) // 2]
    change = (value - quadrature(half, f, 0.0)[0]).abs()
    return change * max(1.0, math.log2(N / p))


def enclosed(T: Tensor, value: Tensor, f: Function, N: int) -> Tensor:
    """The difference of two quadratures that bound the truth from both sides."""
    return (value - quadrature(gauss_radau(T), f, 0.0)[0]).abs()


def gauss_radau(T: Tensor) -> Tensor:
    """``T`` of the Gauss-Radau quadrature with a node at 0, just below the spectrum.

    The two quadratures enclose the integral of ``f`` where the signs of its derivatives
    alternate (Golub, Meurant, "Matrices, moments and quadrature", 1994): of logarithm
    and inverse.
    """
    p = T.shape[-1]
    zero = -torch.finfo(T.dtype).eps * T.abs().amax((-2, -1))
    last = zero
    if p > 1:
        eye = torch.eye(p - 1, dtype=T.dtype)
        beta, size = T[:, -1, -2, None], unit(T, (-2, -1))
        target = eye[:, -1] * (beta / size[..., 0]) * beta
        J = (T[:, :-1, :-1] - zero[:, None, None] * eye) / size
        last = zero + torch.linalg.solve(J, target)[:, -1]
    T = T.clone()
    T[:, -1, -1] = last
    return T


def quadrature(T: Tensor, f: Function, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``e₁ᵀ f(T) e₁``, ``e₁ᵀ |f|(T) e₁`` and the effect of rounding, ``[K]`` each."""
    nodes, vectors = torch.linalg.eigh(T)  # [K, p], [K, p, p]
    weights = vectors[:, 0, :].square()
    values = f(nodes)
    if values.shape != nodes.shape:
        raise ValueError(
            f"Expected f to keep the shape {tuple(nodes.shape)}, got {tuple(values.shape)}."
        )
    bad = ~values.isfinite()
    if bad.any():
        raise ValueError(
            "Expected f to be finite between the least and the largest eigenvalue, got "
            f"{float(values[bad][0])} at {float(nodes[bad][0]):.6g}."
        )
    size = (weights * values.abs()).sum(-1)
    moved = f(nodes + eps * nodes.abs().amax(-1, keepdim=True)) - values
    rounding = (weights * moved.abs().nan_to_num(0, 0)).sum(-1) + eps * size
    return (weights * values).sum(-1), size, rounding
