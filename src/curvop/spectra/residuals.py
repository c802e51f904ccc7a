"""The residuals of eigenpairs, from products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvop.checkpoint import EVERY, State
from curvop.operators import LinearOperator
from curvop.spectra.inner_products import inner_product, norm
from curvop.spectra.resumable import Products


def relation_error(
    multiply: Products, X: Tensor, theta: Tensor, F: Tensor, C: Tensor
) -> float:
    r"""The error of ``A X = X Θ + F C``, estimated by one product.

    A Lanczos method takes its residuals from this relation, without the rounding errors and
    the noise of the matrix. The product with ``X g / √k``, with random signs ``g``, differs
    from the relation by the root mean square of these.

    Args:
        multiply: Products with the matrix.
        X: Orthonormal rows ``[k, N]``.
        theta: ``[k]``.
        F: Orthonormal rows ``[q, N]``.
        C: Coefficients ``[q, k]``.
    """
    k = len(X)
    signs = torch.randint(0, 2, (k,), generator=torch.Generator().manual_seed(k))
    g = ((2 * signs - 1) / k**0.5).to(X)
    error = multiply((g @ X)[None])[0].to(X.dtype, copy=True)
    error.addmv_(X.T, theta.to(g) * g, alpha=-1)
    if len(F):
        error.addmv_(F.T, C.to(g) @ g, alpha=-1)
    return norm(error)


@dataclass
class RitzPairs:
    """Eigenvectors as rows, of which the first ``done`` have a residual.

    Attributes:
        X: Rows ``[k, N]``, normalised.
        values: ``[k]``.
        residuals: ``[k]``; from ``done`` on the estimates of the method.
        status: The status of the search.
        done: Number of rows whose residual is known from products.
        limit: Largest residual that agrees with the estimates of the method.
    """

    X: Tensor
    values: Tensor
    residuals: Tensor
    status: str
    done: int = 0
    limit: float = math.inf

    def known(self) -> RitzPairs:
        """The pairs with a residual, after an interrupt."""
        n = self.done
        return RitzPairs(self.X[:n], self.values[:n], self.residuals[:n], "interrupted", n)

    def state(self) -> State:
        """Everything."""
        return dict(vars(self))


class ResidualCheck:
    """Rayleigh quotients and residuals ``‖A x - λ P x‖``, a few products at a time.

    Args:
        pairs: The pairs, completed in place.
        P: The matrix of a generalised problem, or ``None``.
    """

    def __init__(self, pairs: RitzPairs, P: LinearOperator | None) -> None:
        self._pairs = pairs
        self._P = P

    def run(self, multiply: Products, save: Callable[[], None]) -> str:
        """Multiply with the remaining vectors; returns the status."""
        pairs = self._pairs
        while pairs.done < len(pairs.X):
            X = pairs.X[pairs.done : pairs.done + EVERY]
            AX = multiply(X).to(X.dtype)
            PX = X if self._P is None else (self._P @ X.T.to(self._P.dtype)).T.to(X.dtype)
            for x, ax, px in zip(X, AX, PX, strict=True):
                value = inner_product(x, ax) / inner_product(x, px)
                pairs.values[pairs.done] = value
                pairs.residuals[pairs.done] = norm(torch.add(ax, px, alpha=-value))
                pairs.done += 1
            save()
        if pairs.status == "converged" and bool((pairs.residuals > pairs.limit).any()):
            pairs.status = "inaccurate"
        return pairs.status

    def state(self) -> State:
        """Everything but the matrices."""
        return self._pairs.state()
