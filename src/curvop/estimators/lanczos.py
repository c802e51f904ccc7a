"""Lanczos from several vectors at once, fully reorthogonalised."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from curvop.estimators.products import multiply
from curvop.operators import LinearOperator
from curvop.scaling import norms


def tridiagonals(
    A: LinearOperator, V: Tensor, sizes: Collection[int], before: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """``T``, the matrix on the Krylov space of each column, at some of its sizes ``p``.

    An invariant space cannot grow: its ``T`` is continued by decoupled copies of its
    first entry. When all are invariant, the last ``T`` follows, whatever its size.

    Args:
        A: A symmetric matrix.
        V: First vectors ``[N, K]``, of norm 1.
        sizes: Which ``p`` to stop at; the largest is the last.
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
