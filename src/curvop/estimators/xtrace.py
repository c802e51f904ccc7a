"""XTrace: each probe measures what the sketch by the others leaves."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from curvop.checkpoint import State
from curvop.estimators.moments import leave_one_out_error
from curvop.estimators.products import ROUNDING, multiply, probes, working_dtype
from curvop.estimators.run import Method
from curvop.estimators.sketch import extended, left_out
from curvop.operators import LinearOperator
from curvop.scaling import norms


class XTrace(Method):
    r"""The mean over ``i`` of ``tr Pᵢ A Pᵢ + uᵢᵀ A uᵢ``.

    ``Pᵢ`` projects onto the range of ``A Ω`` without column ``i``, and
    ``uᵢ = (I - Pᵢ) ωᵢ``, scaled to the norm ``√(N - k + 1)`` (Epperly, Tropp, Webber,
    "XTrace: making the most of every sample in stochastic trace estimation", 2024).

    The summands depend on each other: their spread alone would be far too small an error
    (by a factor of 4, where the sketch is about to hold all large eigenvalues). What they
    have in common is measured without two columns each, which costs no products either;
    see :func:`leave_one_out_error`.

    Args:
        A: The matrix.
        chunk_size: Most columns in one product.
    """

    def __init__(self, A: LinearOperator, chunk_size: int) -> None:
        self._A, self._chunk_size = A, chunk_size

    def start(self, generator: Generator) -> State:
        """An empty sketch."""
        A = self._A
        tall = torch.zeros(A.shape[1], 0, dtype=working_dtype(A), device=A.device)
        none = torch.zeros(0, 0, dtype=working_dtype(A), device=A.device)
        return {
            "num_matvecs": 0,
            "count": 0,
            **dict.fromkeys(("G", "Q", "Z"), tall),
            **dict.fromkeys(("R", "QtG", "QtZ", "GtZ"), none),
            "norms": torch.zeros(0, dtype=working_dtype(A), device=A.device),
        }

    def cost(self, state: State) -> int:
        """One for the sketch, one on its basis."""
        return 2

    def step(self, state: State, most: int, generator: Generator) -> State:
        """More columns of the sketch ``A Ω = Q R`` and of ``Z = A Q``."""
        A, n = self._A, state["num_matvecs"]
        c = min(most, max(1, self._chunk_size // 2))
        G, Q, Z, R = (state[name] for name in ("G", "Q", "Z", "R"))
        g = probes("normal", A, c, generator)
        q, r = extended(Q, multiply(A, g, n), g)
        z = multiply(A, q, n + c)
        return {
            **state,
            "num_matvecs": n + 2 * c,
            "count": state["count"] + c,
            "G": torch.cat([G, g], 1),
            "Q": torch.cat([Q, q], 1),
            "Z": torch.cat([Z, z], 1),
            "R": torch.cat([torch.cat([R, R.new_zeros(c, len(R))]), r], 1),
            "QtG": _bordered(state["QtG"], Q, q, G, g),
            "QtZ": _bordered(state["QtZ"], Q, q, Z, z),
            "GtZ": _bordered(state["GtZ"], G, g, Z, z),
            "norms": torch.cat([state["norms"], g.square().sum(0)]),
        }

    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """The mean over what is left out, and its standard error."""
        k, N = state["count"], self._A.shape[1]
        if k < 2:
            nan = torch.tensor(math.nan, dtype=torch.float64)
            return nan, nan
        R, V, H, X, squares = (
            state[name].to("cpu", torch.float64)
            for name in ("R", "QtG", "QtZ", "GtZ", "norms")
        )
        sizes = H.diag().abs().sum() + (norms(V, 0) * norms(R, 0)).mean()
        rounding = ROUNDING * torch.finfo(self._A.dtype).eps * sizes

        S = left_out(R)
        W = V - S * (S * V).sum(0)  # Pᵢ ωᵢ = Q wᵢ
        h = S.T @ H @ S
        on_sketch = H.trace() - h.diag()  # tr Pᵢ A Pᵢ
        # uᵢᵀ A uᵢ and ‖uᵢ‖², with A ωᵢ = Q rᵢ
        rest = (V * R - X.T * W - W * R + W * (H @ W)).sum(0)
        left = squares - W.square().sum(0)

        def scale(dimension: int, square: Tensor) -> Tensor:
            # a probe in the span of the others leaves nothing but rounding
            something = square > torch.finfo(R.dtype).eps ** 0.5 * squares
            return torch.where(something, dimension / square, 1)

        values = on_sketch + scale(N - k + 1, left) * rest

        # the same with column i left out as well: a direction t more, [i, j]
        c = S.T @ S
        g = 1 / (1 - c.square()).clamp(min=torch.finfo(c.dtype).eps).sqrt()
        a = g * (S.T @ W)

        def along(M: Tensor) -> Tensor:  # tᵀ mⱼ
            SM = S.T @ M
            return g * (SM - c * SM.diag())

        tHt = g.square() * (h.diag()[:, None] - c * (h + h.T) + c.square() * h.diag())
        change = a * along(X.T + R - H @ W - H.T @ W) + a.square() * tHt
        pairs = on_sketch - tHt + scale(N - k + 2, left + a.square()) * (rest + change)
        chance = leave_one_out_error(values, values - pairs)
        return values.mean(), torch.hypot(chance, rounding)


def _bordered(M: Tensor, U: Tensor, u: Tensor, V: Tensor, v: Tensor) -> Tensor:
    """``[U, u]ᵀ [V, v]`` from ``M = Uᵀ V``."""
    right = torch.cat([U.mT @ v, u.mT @ v])
    return torch.cat([torch.cat([M, u.mT @ V]), right], 1)
