"""Thick-restart Lanczos with a final search for missed multiple eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from curvop.checkpoint import State
from curvop.spectra.basis import Basis
from curvop.spectra.deflation import DeflatedKrylov
from curvop.spectra.krylov import Krylov, Which, bounds, wanted
from curvop.spectra.residuals import RitzPairs, relation_error
from curvop.spectra.resumable import Products
from curvop.spectra.spectral_transformation import SpectralTransformation

APART = 0.1  # largest component of a missing eigenvector along a known vector
DEFLATED = 12  # least number of rows for a deflated space
JOINED = 2  # most vectors that join the search at once


@dataclass(frozen=True)
class Aim:
    """Which eigenpairs to compute, and to what precision.

    Attributes:
        k: Number of eigenpairs.
        which: Which of them.
        tol: Largest residual, relative to the norm of the matrix.
        ncv: Most vectors that are multiplied between restarts.
        maxiter: Most products.
    """

    k: int
    which: Which
    tol: float
    ncv: int
    maxiter: int


class Lanczos:
    """A run: the search, and a deflated space for eigenvectors that it cannot contain.

    The search is a Krylov space: of a multiple eigenvalue, it contains one eigenvector for
    each start vector. When the wanted ones have converged, a space from a random vector is
    built in the complement of the search; Ritz vectors of it that are wanted, too, join the
    search.

    Args:
        basis: Where vectors are stored.
        start: Start vectors ``[b, N]``; ``None`` for random ones.
        block_size: Number ``b`` of start vectors.
        transform: The matrix, and the problem that it represents.
        aim: The eigenpairs to compute.
        generator: Source of random vectors.
    """

    def __init__(
        self,
        basis: Basis,
        start: Tensor | None,
        block_size: int,
        transform: SpectralTransformation,
        aim: Aim,
        generator: Generator,
    ) -> None:
        self.matrix = transform.B
        self.search = Krylov(basis)
        self.deflated: DeflatedKrylov | None = None  # overwrites the pending vectors
        self._pending: Tensor | None = None
        self._ready = False  # for the next product
        self._start = start
        self._block_size = block_size
        self._transform = transform
        self._aim = aim
        self._generator = generator

    def run(self, multiply: Products, save: Callable[[], None]) -> str:
        """Multiply until the wanted pairs have converged; returns the status."""
        if self.search.used == 0:
            self._begin()
        while True:
            if not self._ready:
                status = self._decide(multiply)
                if status is not None:
                    return status
                self._ready = True
            (self.search if self.deflated is None else self.deflated.krylov).expand(
                multiply
            )
            self._ready = False
            save()

    def _decide(self, multiply: Products) -> str | None:
        """End with a status, or get ready for the next product."""
        if self.deflated is None:
            if self._converged(multiply):
                self._deflate()
                if self.deflated is None:
                    return "converged"
        elif not self._join() and self.deflated.sees_nothing():
            return "converged"
        if multiply.count >= self._aim.maxiter:
            return "maxiter"
        if self.deflated is not None:
            self.deflated.make_room(self._aim.which)
            return None
        self._make_room()
        if self.search.q == 0:  # an invariant subspace of too few dimensions
            self.search.inject(self._generator)
        return None

    def finish(self, status: str, multiply: Products) -> RitzPairs:
        """The wanted pairs (if interrupted, the converged ones); ends use of the basis."""
        search, basis = self.search, self.search.basis
        theta, S, residuals = self._wanted()
        tolerance, noise = self._tolerance(theta), basis.noise * self._norm(theta)
        if status == "interrupted":
            small = residuals <= tolerance
            theta, S, residuals = theta[small], S[:, small], residuals[small]
        if self.deflated is not None and self._pending is not None:
            for i, f in enumerate(self._pending):
                basis.put(search.m + i, f)
        ascending = self._transform.values(theta).argsort()
        theta, S, residuals = theta[ascending], S[:, ascending], residuals[ascending]
        search.restart(theta, S)
        C = search.matrices()[1].clone()
        F = basis.rows(search.m, search.used).clone()
        X = basis.leave(search.m)
        pairs = RitzPairs(X, self._transform.values(theta), residuals, status)
        if not self._transform.plain or basis.basis_dtype != basis.dtype:
            X /= torch.linalg.vector_norm(X, dim=1, keepdim=True)
            self._transform.back(X)
            return pairs
        pairs.limit = 10 * max(tolerance, noise)
        try:
            if status != "interrupted":
                added = relation_error(multiply, X, theta, F, C)
                pairs.residuals = torch.hypot(residuals, torch.full_like(residuals, added))
                pairs.done = len(X) if added <= noise else 0
                return pairs
        except KeyboardInterrupt:
            pairs.status = "interrupted"
        pairs.residuals, pairs.done = residuals + search.slack, len(X)
        return pairs

    def _begin(self) -> None:
        for i in range(self._block_size):
            if self._start is None:
                self.search.inject(self._generator)
            else:
                self.search.offer(self._start[i].to(self.search.basis.dtype, copy=True))

    def _wanted(self) -> tuple[Tensor, Tensor, Tensor]:
        """The wanted Ritz values, their coefficients, their residuals."""
        theta, S, residuals = self.search.ritz()
        w = wanted(theta, self._aim.k, self._aim.which)
        return theta[w], S[:, w], residuals[w]

    def _tolerance(self, theta: Tensor) -> float:
        """The largest residual of a converged pair; not below rounding."""
        return max(self._aim.tol, 4 * self.search.basis.eps) * self._norm(theta)

    def _norm(self, theta: Tensor) -> float:
        """A lower bound of the norm of the matrix."""
        magnitudes: list[float] = theta.abs().tolist()
        return max([self.search.scale, *magnitudes])

    def _converged(self, multiply: Products) -> bool:
        m, q = self.search.m, self.search.q
        # the small eigenproblem takes O(m³): not at every product where it is large
        skipped = m % max(1, m // 16) and q and m + q <= self._aim.ncv
        if m < self._aim.k or skipped:
            return False
        theta, _, residuals = self._wanted()
        small = residuals <= self._tolerance(theta)
        multiply.show(
            converged=f"{int(small.sum())}/{self._aim.k}",
            residual=f"{float(residuals.max()):.1e}",
        )
        return bool(small.all())

    def _make_room(self) -> None:
        search, aim = self.search, self._aim
        if search.m + search.q > aim.ncv:
            spare = aim.ncv - aim.k - search.q
            self._keep(aim.k + max(0, min(spare, (aim.ncv - aim.k) // 2)))

    def _keep(self, p: int) -> None:
        theta, S, _ = self.search.ritz()
        w = wanted(theta, p, self._aim.which)
        self.search.restart(theta[w], S[:, w])

    def _deflate(self) -> None:
        """Begin the search for missing eigenvectors, unless the search spans the space."""
        search, aim = self.search, self._aim
        theta, S, residuals = search.ritz()
        w = wanted(theta, aim.k, aim.which)
        low, high = bounds(theta[w], aim.which)
        # A Ritz vector that has not converged may, by rounding, have a component along a
        # missing eigenvector, of at most residual / distance: that is not deflated.
        known = residuals <= APART * torch.minimum(high - theta, theta - low)
        known[w] = True
        room = max(search.basis.capacity - DEFLATED - search.q, aim.k)
        kept = wanted(theta, room, aim.which)
        kept = kept[known[kept]]
        search.restart(theta[kept], S[:, kept])
        self._pending = search.basis.rows(search.m, search.used).clone()
        # the error of a value is of second order in its residual
        slack = max(search.basis.noise, 4 * aim.tol**2) * self._norm(theta)
        self.deflated = DeflatedKrylov.begun(search, (low, high), slack, self._generator)

    def _join(self) -> bool:
        """Whether the deflated space found vectors, which then join the search."""
        assert self.deflated is not None
        found = self.deflated.found()[:, :JOINED]
        c = found.shape[1]
        if c == 0:
            return False
        search, deflated = self.search, self.deflated.krylov
        deflated.basis.rotate(deflated.base, deflated.base + deflated.m, found)
        theta, S, residuals = self._wanted()
        # dropped vectors couple to the wanted ones by no more than their residuals
        search.slack = max(search.slack, float(residuals.max()))
        search.restart(theta, S, pending=False)
        search.basis.move(deflated.base, deflated.base + c, search.used)
        search.q = c
        self.deflated = None
        return True

    # ---------------------------------------------------------------- checkpoint

    def state(self) -> State:
        """The state of the run, without its aim."""
        return {
            "panels": self.search.basis.panels,
            "search": self.search.state(),
            "chain": None if self.deflated is None else self.deflated.state(),
            "pending": self._pending,
            "ready": self._ready,
            "generator": self._generator.get_state(),
        }

    def resume(self, state: State) -> None:
        """Continue from this state."""
        basis = self.search.basis
        basis.panels[:] = [p.to(basis.basis_device) for p in state["panels"]]
        self.search = Krylov.resumed(basis, state["search"])
        if state["chain"] is not None:
            self.deflated = DeflatedKrylov.resumed(basis, state["chain"])
            self._pending = state["pending"].to(basis.device)
        self._ready = state["ready"]
        self._generator.set_state(state["generator"])
