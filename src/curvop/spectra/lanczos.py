"""Thick-restart Lanczos that looks for missed copies before it ends."""

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

APART = 0.1  # largest part of what is missing in a vector that is known
DEFLATED = 12  # rows that a deflated space should have to itself
JOINED = 2  # vectors that join the search at once


@dataclass(frozen=True)
class Aim:
    """What is to be found, and how well.

    Attributes:
        k: Number of eigenpairs.
        which: Which of them.
        tol: Residual, relative to the norm of the matrix.
        ncv: Vectors that are multiplied between restarts, at most.
        maxiter: Products at most.
    """

    k: int
    which: Which
    tol: float
    ncv: int
    maxiter: int


class Lanczos:
    """A run: the search, and a deflated space that looks for what it cannot see.

    The search is a Krylov space: whatever the number of copies of an eigenvalue, it has
    one eigenvector from each start vector. Once the wanted ones have converged, a space
    from a random vector is built in the complement of the search; what it finds beyond the
    wanted ones joins the search.

    Args:
        basis: Where vectors are stored.
        start: Start vectors ``[b, N]``; ``None`` for random ones.
        block_size: Number ``b`` of start vectors.
        transform: The matrix, and the problem that it stands for.
        aim: What is to be found.
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
        self.deflated: DeflatedKrylov | None = None  # takes the place of what is pending
        self._pending: Tensor | None = None
        self._ready = False  # for the next product
        self._start = start
        self._block_size = block_size
        self._transform = transform
        self._aim = aim
        self._generator = generator

    def run(self, multiply: Products, save: Callable[[], None]) -> str:
        """Multiply until the wanted pairs have converged; the status, as a word."""
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
        if self.search.q == 0:  # an invariant subspace with too little in it
            self.search.inject(self._generator)
        return None

    def finish(self, status: str, multiply: Products) -> RitzPairs:
        """Give up the basis for the wanted pairs; if interrupted, the converged ones."""
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
        """A residual that is small enough; no smaller than rounding can make it."""
        return max(self._aim.tol, 4 * self.search.basis.eps) * self._norm(theta)

    def _norm(self, theta: Tensor) -> float:
        """Norm of the matrix, as far as it was seen."""
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
        """Look for what is missing, unless the search spans the space."""
        search, aim = self.search, self._aim
        theta, S, residuals = search.ritz()
        w = wanted(theta, aim.k, aim.which)
        low, high = bounds(theta[w], aim.which)
        # A Ritz vector that has not converged may, by rounding, have a part in what is
        # missing, which then is not in the complement: at most residual / distance.
        known = residuals <= APART * torch.minimum(high - theta, theta - low)
        known[w] = True
        room = max(search.basis.capacity - DEFLATED - search.q, aim.k)
        kept = wanted(theta, room, aim.which)
        kept = kept[known[kept]]
        search.restart(theta[kept], S[:, kept])
        self._pending = search.basis.rows(search.m, search.used).clone()
        # what a residual leaves undecided of a value is of second order
        slack = max(search.basis.noise, 4 * aim.tol**2) * self._norm(theta)
        self.deflated = DeflatedKrylov.begun(search, (low, high), slack, self._generator)

    def _join(self) -> bool:
        """Whether the deflated space found something, which then is part of the search."""
        assert self.deflated is not None
        found = self.deflated.found()[:, :JOINED]
        c = found.shape[1]
        if c == 0:
            return False
        search, deflated = self.search, self.deflated.krylov
        deflated.basis.rotate(deflated.base, deflated.base + deflated.m, found)
        theta, S, residuals = self._wanted()
        # what is dropped couples to the wanted ones by no more than their residuals
        search.slack = max(search.slack, float(residuals.max()))
        search.restart(theta, S, pending=False)
        search.basis.move(deflated.base, deflated.base + c, search.used)
        search.q = c
        self.deflated = None
        return True

    # ---------------------------------------------------------------- checkpoint

    def state(self) -> State:
        """All that the run consists of, other than its aim."""
        return {
            "panels": self.search.basis.panels,
            "search": self.search.state(),
            "chain": None if self.deflated is None else self.deflated.state(),
            "pending": self._pending,
            "ready": self._ready,
            "generator": self._generator.get_state(),
        }

    def resume(self, state: State) -> None:
        """Go on from this state."""
        basis = self.search.basis
        basis.panels[:] = [p.to(basis.basis_device) for p in state["panels"]]
        self.search = Krylov.resumed(basis, state["search"])
        if state["chain"] is not None:
            self.deflated = DeflatedKrylov.resumed(basis, state["chain"])
            self._pending = state["pending"].to(basis.device)
        self._ready = state["ready"]
        self._generator.set_state(state["generator"])
