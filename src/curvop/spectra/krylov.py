"""The Lanczos decomposition of a symmetric matrix, restarted in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from curvop.checkpoint import State
from curvop.scaling import norms
from curvop.spectra.basis import Basis
from curvop.spectra.inner_products import norm

Multiply = Callable[[Tensor], Tensor]
Which = Literal["LA", "SA", "LM", "BE"]


class Krylov:
    r"""``A V = V T + F C`` with orthonormal rows of a basis for the columns of ``V, F``.

    ``V`` has ``m`` vectors that were multiplied; ``F`` has ``q`` *pending* ones, which were
    not yet. ``C [q, m]`` couples them. Rows of the basis before ``base`` are not changed,
    and every vector is orthogonal to them: the decomposition is that of
    ``(I - QQᵀ) A (I - QQᵀ)`` with these rows as ``Q``.

    ``T`` and ``C`` are the leading blocks of one matrix, which is the Rayleigh quotient
    of ``[V, F]`` as far as it is known. It is symmetric if ``A`` is: an asymmetric
    coefficient that rounding does not explain is an error.

    Args:
        basis: Where the vectors are stored.
        base: Number of rows not to change.
        scale: A lower bound of ``‖A‖`` that is already known.
    """

    def __init__(self, basis: Basis, base: int = 0, scale: float = 0.0) -> None:
        self.basis = basis
        self.base = base
        self.scale = scale
        self.slack = 0.0  # norm of the coupling that was dropped and is not in T
        self.m = 0
        self.q = 0
        room = basis.capacity - base
        self._T = torch.zeros(room, room, dtype=torch.float64)

    @property
    def used(self) -> int:
        """Rows of the basis in use, including those before ``base``."""
        return self.base + self.m + self.q

    def offer(self, w: Tensor) -> bool:
        """Add the part of ``w`` outside of the basis as a pending vector; changes ``w``."""
        before = norm(w)
        _, left = self.basis.orthogonalise(w, self.used)
        if left <= self.basis.noise * before:
            return False
        self.basis.put(self.used, w.div_(left))
        self.q += 1
        return True

    def inject(self, generator: Generator) -> bool:
        """Add a random pending vector; ``False`` if the basis spans the space."""
        if self.used >= self.basis.N:
            return False
        return self.offer(random(self.basis, generator))

    def expand(self, multiply: Multiply) -> None:
        """Multiply the pending vectors; new directions in the products become pending."""
        W = multiply(self.basis.rows(self.base + self.m, self.used))
        # a copy: an operator may return a tensor that it stores, or its argument
        W = W.to(self.basis.dtype, copy=True)
        for w in W:
            self.scale = max(self.scale, norm(w))
            coefficients, beta = self.basis.orthogonalise(w, self.used)
            h = coefficients[self.base :]
            m, n = self.m, self.m + self.q
            self._check_symmetry(h[:m] - self._T[m, :m])
            # known entries stay: noise must not keep residuals from becoming small
            self._T[m:n, m] = self._T[m, m:n] = h[m:]
            self._T[:m, m] = self._T[m, :m]
            if beta > self.basis.noise * self.scale and self.used < self.basis.N:
                self.basis.put(self.used, w.div_(beta))
                self._T[n, m] = self._T[m, n] = beta
                self.q += 1
            self.m += 1
            self.q -= 1

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values ``[m]``, their coefficients ``[m, m]``, their residuals ``[m]``."""
        T, C = self.matrices()
        theta, S = torch.linalg.eigh(T)
        return theta, S, norms(C @ S, 0)

    def restart(self, theta: Tensor, S: Tensor, *, pending: bool = True) -> None:
        """Keep the Ritz vectors with coefficients ``S [m, p]`` and the pending ones.

        (Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue
        problems", 2000; Zhou and Saad, "Block Krylov-Schur method", 2008.)
        """
        (m, p), q = S.shape, self.q if pending else 0
        C = self._T[m : m + q, :m] @ S
        self.basis.rotate(self.base, self.base + m, S)
        self.basis.move(self.base + m, self.base + m + q, self.base + p)
        self._T.zero_()
        self._T[:p, :p] = torch.diag(theta)
        self._T[p : p + q, :p] = C
        self._T[:p, p : p + q] = C.T
        self.m, self.q = p, q

    def matrices(self) -> tuple[Tensor, Tensor]:
        """``T [m, m]`` and ``C [q, m]``."""
        m, q = self.m, self.q
        return self._T[:m, :m], self._T[m : m + q, :m]

    def state(self) -> State:
        """Everything but the basis."""
        n = self.m + self.q
        names = ("base", "scale", "slack", "m", "q")
        return {name: getattr(self, name) for name in names} | {
            "T": self._T[:n, :n].clone()
        }

    @classmethod
    def resumed(cls, basis: Basis, state: State) -> Krylov:
        """The decomposition with this state."""
        self = cls(basis, state["base"], state["scale"])
        self.slack, self.m, self.q = state["slack"], state["m"], state["q"]
        n = self.m + self.q
        self._T[:n, :n] = state["T"]
        return self

    def _check_symmetry(self, difference: Tensor) -> None:
        if not len(difference):
            return
        largest = float(difference.abs().max())
        if largest > self.basis.eps**0.5 * self.scale + 2 * self.slack:
            raise ValueError(
                "Expected a symmetric matrix, got one with |uᵀAv - vᵀAu| = "
                f"{largest:.1e} for unit vectors u, v, where ‖A‖ is at least "
                f"{self.scale:.1e}. Is it rightly tagged as symmetric, and the same at "
                "every product?"
            )


def random(basis: Basis, generator: Generator) -> Tensor:
    """A standard normal vector ``[N]``."""
    device = generator.device
    v = torch.randn(basis.N, generator=generator, device=device, dtype=basis.dtype)
    return v.to(basis.device)


def wanted(theta: Tensor, k: int, which: Which) -> Tensor:
    """Positions, in order, of the ``k`` wanted among ascending Ritz values."""
    m = len(theta)
    k = min(k, m)
    if which == "LM":
        return theta.abs().argsort(descending=True, stable=True)[:k].sort().values
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    positions = theta.new_tensor([*range(low), *range(m - (k - low), m)])
    return positions.long()


def bounds(values: Tensor, which: Which) -> tuple[float, float]:
    """The open interval of the unwanted values, from the wanted ones."""
    values = values.sort().values
    if which == "LM":
        smallest = float(values.abs().min())
        return -smallest, smallest
    low = {"LA": 0, "SA": len(values), "BE": len(values) // 2}[which]
    return (
        float(values[low - 1]) if low else -math.inf,
        float(values[low]) if low < len(values) else math.inf,
    )
