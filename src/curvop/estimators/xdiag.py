"""XDiag: each probe measures the diagonal of what the sketch by the others leaves."""

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
from curvop.scaling import norm, norms

# Numbers that the error of some rows may take at once; it looks at pairs of probes.
CHUNK = 2**22


class XDiag(Method):
    r"""The mean over ``i`` of ``diag(Pᵢ A) + ωᵢ ∘ (I - Pᵢ) A ωᵢ``.

    ``Pᵢ`` projects onto the range of ``A Ω`` without column ``i``; the probes are signs
    (Epperly, Tropp, Webber, "XTrace: making the most of every sample in stochastic trace
    estimation", 2024, section 2.4).

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
        return {
            "num_matvecs": 0,
            "count": 0,
            **dict.fromkeys(("G", "Q", "Z"), tall),
            "R": tall[:0],
        }

    def cost(self, state: State) -> int:
        """One for the sketch, one of the transposed matrix on its basis."""
        return 2

    def step(self, state: State, most: int, generator: Generator) -> State:
        """More columns of the sketch ``A Ω = Q R`` and of ``Z = Aᵀ Q``."""
        A, n = self._A, state["num_matvecs"]
        c = min(most, max(1, self._chunk_size // 2))
        Q, R = state["Q"], state["R"]
        g = probes("signs", A, c, generator)
        q, r = extended(Q, multiply(A, g, n), g)
        z = multiply(A.T, q, n + c)
        return {
            **state,
            "num_matvecs": n + 2 * c,
            "count": state["count"] + c,
            "G": torch.cat([state["G"], g], 1),
            "Q": torch.cat([Q, q], 1),
            "Z": torch.cat([state["Z"], z], 1),
            "R": torch.cat([torch.cat([R, R.new_zeros(c, len(R))]), r], 1),
        }

    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """The mean over what is left out, and its standard error: ``[N]`` each."""
        G, Q, Z, R = (state[name] for name in ("G", "Q", "Z", "R"))
        k = state["count"]
        if k < 2:
            nan = torch.full_like(G.sum(1), math.nan)
            return nan, nan
        S = left_out(R.to("cpu", torch.float64)).to(R)
        r = (S * R).sum(0)
        rows = (M.split(max(1, CHUNK // k**2)) for M in (G, Q, Z))
        parts = [_on_rows(G, Q, Z, S, r) for G, Q, Z in zip(*rows, strict=True)]
        values, errors = (torch.cat(p) for p in zip(*parts, strict=True))
        # the entries of a row, and those that a rounding error spreads from all rows
        sizes = [norms(M, 1) + norm(M) / len(M) ** 0.5 for M in (Q, Z)]
        rounding = ROUNDING * torch.finfo(self._A.dtype).eps * sizes[0] * sizes[1]
        return values, torch.hypot(errors, rounding)


def _on_rows(
    G: Tensor, Q: Tensor, Z: Tensor, S: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and error by chance of some entries, from their rows ``[n, k]``.

    With ``qᵢ = Q sᵢ`` and ``zᵢ = Z sᵢ``, the rest ``(I - Pᵢ) A ωᵢ`` is ``rᵢ qᵢ``.
    """
    terms = Q * Z
    Q, Z = Q @ S, Z @ S
    Y = Z - G * r
    values = terms.sum(1, keepdim=True) - Q * Y
    # the direction that leaving out i, too, takes from the estimate without j: [n, i, j]
    c = S.mT @ S
    g = 1 / (1 - c.square()).clamp(min=torch.finfo(c.dtype).eps)
    q, z = (M[:, :, None] - c * N[:, None, :] for M, N in ((Q, Q), (Z, Y)))
    chance = leave_one_out_error(values, g * q * z)
    return values.mean(1), chance
