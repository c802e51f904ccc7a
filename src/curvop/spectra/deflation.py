"""Deflation: a search for eigenvectors to which the start vector was orthogonal."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from curvop.checkpoint import State
from curvop.spectra.basis import Basis
from curvop.spectra.krylov import Krylov, Which, wanted

# A random unit vector has a component below LUCK/√N in a given direction with probability
# 0.8 · LUCK; a missing eigenvector is then overlooked.
LUCK = 1e-3


class DeflatedKrylov:
    r"""A Krylov space from a random vector, in the complement of the known vectors.

    It is expanded until one of its Ritz values lies outside ``[low, high]``, or it is
    certain that no eigenvalue does. If ``u`` is an eigenvector with eigenvalue ``x``, then
    ``Vᵀu = (x - T)⁻¹ c (fᵀu)`` by ``A V = V T + f cᵀ``, so that one component of ``u``
    gives all others. The component along the random vector is hardly below ``LUCK/√N``; if
    the others would then make ``u`` longer than 1, there is no such ``u``. (Without a
    restart this is the Christoffel function: Akhiezer, "The classical moment problem",
    1965, chapter 2.)

    Args:
        krylov: The space, with the random vector pending.
        low: Eigenvalues below are searched for.
        high: Eigenvalues above are searched for.
        slack: Distance up to which values count as equal.
    """

    def __init__(self, krylov: Krylov, low: float, high: float, slack: float) -> None:
        self.krylov = krylov
        self.low = low
        self.high = high
        self.slack = slack
        self._anchor = 0  # vector along which the component of u is known ...
        self._growth = [1.0, 1.0]  # ... as a multiple of that along the random vector

    @classmethod
    def begun(
        cls,
        search: Krylov,
        bounds: tuple[float, float],
        slack: float,
        generator: Generator,
    ) -> DeflatedKrylov | None:
        """A space in the complement of ``search``, if there is any."""
        # pending vectors have not been multiplied: they are not known
        known = search.base + search.m
        krylov = Krylov(search.basis, known, search.scale)
        return cls(krylov, *bounds, slack) if krylov.inject(generator) else None

    def make_room(self, which: Which) -> None:
        """Restart if the basis is full."""
        krylov = self.krylov
        if krylov.used + 1 <= krylov.basis.capacity:
            return
        self._growth = [self._parts(x, i)[0] for i, x in enumerate((self.low, self.high))]
        theta, S, _ = krylov.ritz()
        w = wanted(theta, max(1, krylov.m // 2), which)
        krylov.restart(theta[w], S[:, w])
        self._anchor = krylov.m

    def found(self) -> Tensor:
        """Coefficients ``[m, c]`` of Ritz vectors with values outside the bounds."""
        theta, S, _ = self.krylov.ritz()
        return S[:, (theta > self.high + self.slack) | (theta < self.low - self.slack)]

    def sees_nothing(self) -> bool:
        """Whether there is nothing outside the bounds."""
        krylov = self.krylov
        if krylov.q == 0:
            return True  # the space is invariant: there is nothing else
        theta, _, residuals = krylov.ritz()
        settled = math.sqrt(self.slack) * math.sqrt(float(theta[-1] - theta[0]))
        for end, x in ((0, self.low), (-1, self.high)):
            if math.isinf(x) or float(residuals[end]) <= settled:
                continue
            if float(theta[0]) < x < float(theta[-1]):
                return False
            growth, length = self._parts(x, end % 2)
            if growth * length * LUCK < krylov.basis.N**0.5:
                return False
        return True

    def _parts(self, x: float, end: int) -> tuple[float, float]:
        """Component of ``u`` along the pending vector, if that along the random one is 1.

        The second number is the length of ``u`` if the former is 1.
        """
        if math.isinf(x):
            return 1.0, 1.0
        T, C = self.krylov.matrices()
        y = torch.linalg.solve_ex(x * torch.eye(len(T), dtype=T.dtype) - T, C[0])[0]
        growth = self._growth[end] / max(float(y[self._anchor].abs()), 1e-100)
        return min(growth, 1e100), math.hypot(1.0, float(torch.linalg.vector_norm(y)))

    def state(self) -> State:
        """All but the basis."""
        return {
            "krylov": self.krylov.state(),
            "bounds": (self.low, self.high, self.slack),
            "anchor": self._anchor,
            "growth": self._growth,
        }

    @classmethod
    def resumed(cls, basis: Basis, state: State) -> DeflatedKrylov:
        """The space with this state."""
        self = cls(Krylov.resumed(basis, state["krylov"]), *state["bounds"])
        self._anchor, self._growth = state["anchor"], list(state["growth"])
        return self
