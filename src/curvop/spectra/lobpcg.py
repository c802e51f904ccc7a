"""LOBPCG: eigenpairs at one end of the spectrum, with a preconditioner."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from curvop.checkpoint import State
from curvop.operators import LinearOperator
from curvop.scaling import norms, unit
from curvop.spectra.residuals import RitzPairs
from curvop.spectra.resumable import Products

NOISE = 500  # units of rounding that the recurrences may add to a residual


class LOBPCG:
    r"""Locally optimal block preconditioned conjugate gradients for ``A v = λ P v``.

    Rayleigh-Ritz on ``[X, D, W]``: the current vectors, their last directions, and the
    preconditioned residuals ``W = M (A X - P X Θ)`` (Knyazev, "Toward the optimal
    preconditioned eigensolver", 2001). All are kept orthonormal with respect to ``P``,
    ``D`` in the small space of coefficients, without which the method breaks down before
    it has converged (Hetmaniuk and Lehoucq, "Basis selection in LOBPCG", 2006).

    Vectors are rows, and come with their products: ``S = [V, A V, P V]`` is a tensor
    ``[3, n, N]``, or ``[2, n, N]`` without ``P``.

    Args:
        A: The matrix.
        X: Start ``[k, N]``; ``None`` for random vectors.
        k: Number of wanted pairs.
        largest: Which end of the spectrum.
        P: The matrix of the inner product, or ``None``.
        M: The preconditioner, or ``None``.
        tol: Largest residual, relative to the norm of the matrix.
        maxiter: Most products.
        generator: Source of random vectors.
    """

    def __init__(
        self,
        A: LinearOperator,
        X: Tensor | None,
        k: int,
        *,
        largest: bool,
        P: LinearOperator | None,
        M: LinearOperator | None,
        tol: float,
        maxiter: int,
        generator: Generator,
    ) -> None:
        self.matrix = A
        self._dtype = torch.promote_types(A.dtype, torch.float32)
        self._k = k
        self._sign = 1.0 if largest else -1.0
        self._P = P
        self._M = M
        self._eps = torch.finfo(A.dtype).eps
        self._tol = max(tol, NOISE * self._eps)
        self._maxiter = maxiter
        self._generator = generator
        self._start = X
        self._norm = 0.0
        self._X: Tensor | None = None
        self._D: Tensor | None = None
        self._theta = torch.zeros(0, dtype=self._dtype, device=A.device)
        self._drawn = generator.get_state()  # as it was before the step
        self._fresh = False  # whether A X is from a product, not a combination of products

    def run(self, multiply: Products, save: Callable[[], None]) -> str:
        """Multiply until the wanted pairs have converged; returns the status."""
        while True:
            self._drawn = self._generator.get_state()
            if self._X is None:
                start = self._random() if self._start is None else self._start
                self._multiply_anew(start.to(self._dtype), multiply)
            assert self._X is not None
            R = self._residuals(self._X)
            active = self._error(self._X, R) > self._tol
            multiply.show(
                converged=f"{int((~active).sum())}/{self._k}",
                residual=f"{float(norms(R, 1).max()):.1e}",
            )
            done = not bool(active.any())
            if done and self._fresh:
                return "converged"
            if multiply.count >= self._maxiter:
                return "maxiter"
            if done:
                self._multiply_anew(self._X[0], multiply)
            else:
                self._step(R[active], multiply)
            save()

    def finish(self, status: str, multiply: Products) -> RitzPairs:
        """The wanted pairs; if interrupted, the converged ones."""
        if self._X is None:
            none = self._theta.cpu().double()
            empty = torch.zeros(0, self.matrix.shape[0]).to(self._theta)
            return RitzPairs(empty, none, none, status)
        X, theta, R = self._X, self._theta, self._residuals(self._X)
        if status == "interrupted":
            small = self._error(X, R) <= self._tol
            X, theta, R = X[:, small], theta[small], R[small]
        order = theta.argsort()
        values, residuals = theta[order], norms(R[order], 1)
        done = len(order) if self._fresh or status == "interrupted" else 0
        return RitzPairs(
            X[0][order], values.cpu().double(), residuals.cpu().double(), status, done
        )

    # ------------------------------------------------------------------ the method

    def _multiply_anew(self, V: Tensor, multiply: Products) -> None:
        """Rayleigh-Ritz on ``V`` alone, with new products."""
        S = self._with_products(self._orthonormal(V), multiply)
        theta, C = self._ritz(S)
        self._X, self._theta, self._fresh = C.T @ S, theta, True

    def _step(self, R: Tensor, multiply: Products) -> None:
        """Rayleigh-Ritz on ``[X, D, W]``."""
        assert self._X is not None
        known = self._X if self._D is None else torch.cat([self._X, self._D], 1)
        W = R / unit(R, 1)
        if self._M is not None:
            W = (self._M @ W.T.to(self._M.dtype)).T.to(R.dtype)
        W = self._orthonormal(W, known)
        if not len(W):  # nothing new in the residuals: a random direction
            W = self._orthonormal(self._random(), known)
        S = torch.cat([known, self._with_products(W, multiply)], 1) if len(W) else known
        k = self._k
        theta, C = self._ritz(S)
        Z = C[:, :k].clone()
        Z[:k] = 0
        for _ in range(2):
            Z -= C[:, :k] @ (C[:, :k].T @ Z)
        U, scales, _ = torch.linalg.svd(Z, full_matrices=False)
        Z = U[:, scales > self._eps**0.75]
        self._X, self._theta, self._fresh = C[:, :k].T @ S, theta[:k], False
        self._D = Z.T @ S if Z.shape[1] else None

    def _residuals(self, X: Tensor) -> Tensor:
        R: Tensor = X[1] - self._theta[: X.shape[1], None] * self._in_P(X)
        return R

    def _error(self, X: Tensor, R: Tensor) -> Tensor:
        """Residuals relative to the norm of the matrix."""
        scale = self._norm or 1.0  # of the zero matrix every residual is zero
        return norms(R, 1) / (scale * norms(X[0], 1))

    def _ritz(self, S: Tensor) -> tuple[Tensor, Tensor]:
        """Ritz values, the wanted end first, and their coefficients."""
        T = S[0] @ S[1].T
        size = unit(T)
        theta, C = torch.linalg.eigh(-self._sign * (T + T.T) / (2 * size))
        return -self._sign * theta * size, C

    def _with_products(self, V: Tensor, multiply: Products) -> Tensor:
        AV = multiply(V).to(V.dtype)
        self._norm = max(self._norm, float((norms(AV, 1) / norms(V, 1)).max()))
        return torch.stack([V, AV] if self._P is None else [V, AV, self._times_P(V)])

    def _orthonormal(self, W: Tensor, known: Tensor | None = None) -> Tensor:
        """Orthonormal rows for the part of ``W`` orthogonal to ``known``; may be fewer."""
        for _ in range(3):
            if known is not None:
                W = W - (W @ self._in_P(known).T) @ known[0]
            W = W[(W != 0).any(1)]
            W = W / norms(W, 1)[:, None]
            G = W @ (W if self._P is None else self._times_P(W)).T
            if bool((G.diagonal() <= 0).any()):
                raise ValueError(
                    "Expected a positive definite P, got one with xᵀPx ≤ 0. Add a "
                    "damping term."
                )
            d = G.diagonal().rsqrt()
            values, U = torch.linalg.eigh(d[:, None] * (G + G.T) / 2 * d)
            kept = values > 10 * len(G) * self._eps
            W = (U[:, kept] * values[kept].rsqrt()).T @ (d[:, None] * W)
        return W

    def _in_P(self, S: Tensor) -> Tensor:
        return S[0] if self._P is None else S[2]

    def _times_P(self, V: Tensor) -> Tensor:
        assert self._P is not None
        PV: Tensor = (self._P @ V.T.to(self._P.dtype)).T
        return PV.to(V.dtype)

    def _random(self) -> Tensor:
        g, shape = self._generator, (self._k, self.matrix.shape[0])
        V = torch.randn(shape, generator=g, device=g.device, dtype=self._dtype)
        return V.to(self.matrix.device)

    # ------------------------------------------------------------------ checkpoint

    def state(self) -> State:
        """The state of the run."""
        return {
            "X": self._X,
            "D": self._D,
            "theta": self._theta,
            "norm": self._norm,
            "fresh": self._fresh,
            "generator": self._drawn,
        }

    def resume(self, state: State) -> None:
        """Continue from this state."""
        device = self.matrix.device
        self._X, self._D = (
            None if S is None else S.to(device) for S in (state["X"], state["D"])
        )
        self._theta = state["theta"].to(device)
        self._norm, self._fresh = state["norm"], state["fresh"]
        self._generator.set_state(state["generator"])
