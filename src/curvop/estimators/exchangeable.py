"""XTrace and XDiag: each probe estimates what the sketch of the others leaves.

Their summands are exchangeable, not independent (Epperly, Tropp, Webber, "XTrace: making
the most of every sample in stochastic trace estimation", 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from curvop.checkpoint import State
from curvop.estimators.moments import student_factor
from curvop.estimators.probes import ROUNDING, multiply, probes, working_dtype
from curvop.estimators.sequential import Estimator
from curvop.estimators.sketch import extended, left_out
from curvop.operators import LinearOperator
from curvop.scaling import norm, norms, unit

# Most numbers in memory for the errors of some rows, which are over pairs of probes.
CHUNK = 2**22


class XTrace(Estimator):
    r"""The mean over ``i`` of ``tr Pᵢ A Pᵢ + uᵢᵀ A uᵢ``.

    ``Pᵢ`` projects onto the range of ``A Ω`` without column ``i``, and
    ``uᵢ = (I - Pᵢ) ωᵢ``, scaled to the norm ``√(N - k + 1)`` (Epperly, Tropp, Webber,
    "XTrace: making the most of every sample in stochastic trace estimation", 2024).

    The summands depend on each other: their spread alone would be far too small an error
    (by a factor of 4, when the sketch has nearly all large eigenvalues). Their covariance
    is estimated by leaving out two columns each, which takes no products either; see
    :func:`leave_one_out_error`.

    Args:
        A: The matrix.
        chunk_size: Most columns in one product.
    """

    def __init__(self, A: LinearOperator, chunk_size: int) -> None:
        self._A, self._chunk_size = A, chunk_size

    def start(self, generator: Generator) -> State:
        """An empty sketch."""
        empty = _empty(self._A)
        more = dict.fromkeys(("QtG", "QtZ", "GtZ"), empty["R"])
        return empty | more | {"norms": empty["R"].flatten()}

    def cost(self, state: State) -> int:
        """One for the sketch, one on its basis."""
        return 2

    def step(self, state: State, most: int, generator: Generator) -> State:
        """More columns of the sketch ``A Ω = Q R`` and of ``Z = A Q``."""
        c = min(most, max(1, self._chunk_size // 2))
        G, Q, Z = (state[name] for name in ("G", "Q", "Z"))
        g = probes("normal", self._A, c, generator)
        grown, q, z = _grown(state, g, self._A, self._A)
        return {
            **grown,
            "QtG": _bordered(state["QtG"], Q, q, G, g),
            "QtZ": _bordered(state["QtZ"], Q, q, Z, z),
            "GtZ": _bordered(state["GtZ"], G, g, Z, z),
            "norms": torch.cat([state["norms"], g.square().sum(0)]),
        }

    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """The mean over the columns left out, and its standard error."""
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
            # a probe in the span of the others leaves only rounding errors
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


class XDiag(Estimator):
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
        return _empty(self._A)

    def cost(self, state: State) -> int:
        """One for the sketch, one of the transposed matrix on its basis."""
        return 2

    def step(self, state: State, most: int, generator: Generator) -> State:
        """More columns of the sketch ``A Ω = Q R`` and of ``Z = Aᵀ Q``."""
        c = min(most, max(1, self._chunk_size // 2))
        g = probes("signs", self._A, c, generator)
        return _grown(state, g, self._A, self._A.T)[0]

    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """The mean over the columns left out, and its standard error: ``[N]`` each."""
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
        # magnitudes in a row, and rounding errors that orthogonalisation spreads from all
        sizes = [norms(M, 1) + norm(M) / len(M) ** 0.5 for M in (Q, Z)]
        rounding = ROUNDING * torch.finfo(self._A.dtype).eps * sizes[0] * sizes[1]
        return values, torch.hypot(errors, rounding)


def _empty(A: LinearOperator) -> State:
    """No columns of the probes ``Ω``, the sketch ``A Ω = Q R``, and ``Z = B Q``."""
    tall = torch.zeros(A.shape[1], 0, dtype=working_dtype(A), device=A.device)
    none = tall[:0]
    return {"num_matvecs": 0, "count": 0, "G": tall, "Q": tall, "Z": tall, "R": none}


def _grown(
    state: State, g: Tensor, A: LinearOperator, B: LinearOperator
) -> tuple[State, Tensor, Tensor]:
    """More columns, from these probes; those of ``Q`` and ``Z`` by themselves, too."""
    c, n, R = g.shape[1], state["num_matvecs"], state["R"]
    q, r = extended(state["Q"], multiply(A, g, n), g)
    z = multiply(B, q, n + c)
    grown = state | {
        "num_matvecs": n + 2 * c,
        "count": state["count"] + c,
        "G": torch.cat([state["G"], g], 1),
        "Q": torch.cat([state["Q"], q], 1),
        "Z": torch.cat([state["Z"], z], 1),
        "R": torch.cat([torch.cat([R, R.new_zeros(c, len(R))]), r], 1),
    }
    return grown, q, z


def _bordered(M: Tensor, U: Tensor, u: Tensor, V: Tensor, v: Tensor) -> Tensor:
    """``[U, u]ᵀ [V, v]`` from ``M = Uᵀ V``."""
    right = torch.cat([U.mT @ v, u.mT @ v])
    return torch.cat([torch.cat([M, u.mT @ V]), right], 1)


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


def leave_one_out_error(values: Tensor, effects: Tensor) -> Tensor:
    r"""Standard error of the mean of estimates that leave out one probe each.

    They are dependent, so that their spread alone can be far too small. With ``dᵢⱼ`` the
    effect of probe ``i`` on the estimate ``tⱼ``,

    .. math:: \operatorname{Var} \bar t =
        \mathbb{E}\left[\frac{s^2}{k} + \operatorname{mean}_{i≠j} d_{ij} d_{ji}\right].

    For ``tⱼ - dᵢⱼ`` does not depend on probe ``i``, over which ``tᵢ`` is unbiased: the two
    are uncorrelated, and the covariance of ``tᵢ`` and ``tⱼ`` is ``E dᵢⱼ dⱼᵢ``.

    Args:
        values: The estimates ``tⱼ``, ``[*shape, k]``.
        effects: ``dᵢⱼ`` at ``[*shape, i, j]``.
    """
    k = values.shape[-1]
    size = torch.maximum(unit(values, -1), unit(effects, (-2, -1))[..., 0])
    values, effects = values / size, effects / size[..., None]
    both = effects * effects.mT
    shared = (both.sum((-2, -1)) - both.diagonal(dim1=-2, dim2=-1).sum(-1)) / (k * (k - 1))
    error = student_factor(k) * (values.var(-1) / k + shared.clamp(min=0)).sqrt()
    return error * size[..., 0]
