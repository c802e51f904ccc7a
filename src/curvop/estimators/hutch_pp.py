"""Hutch++: the trace exactly on a sketch, and by probes on its complement."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from curvop.checkpoint import State
from curvop.estimators.moments import mean_and_error, no_moments, with_samples
from curvop.estimators.probes import (
    multiply,
    probes,
    quadratic_forms,
    working_dtype,
)
from curvop.estimators.sequential import FIRST_LOOK, Estimator
from curvop.estimators.sketch import extended
from curvop.operators import LinearOperator


class HutchPP(Estimator):
    r"""``tr Qᵀ A Q`` and the mean of ``uᵀ A u`` over probes ``u`` orthogonal to ``Q``.

    (Meyer, Musco, Musco, Woodruff, "Hutch++: optimal stochastic trace estimation", 2021).
    Probes are normal, scaled to the norm ``√(N - k)`` after the projection: there is no
    variance if all other eigenvalues are equal.

    Args:
        A: The matrix.
        size: Number ``k`` of columns of the sketch at the start of a run.
        chunk_size: Most columns in one product.
    """

    def __init__(self, A: LinearOperator, size: int, chunk_size: int) -> None:
        self._A, self._size, self._chunk_size = A, size, chunk_size

    def start(self, generator: Generator) -> State:
        """An empty sketch."""
        A = self._A
        zero = torch.zeros((), dtype=torch.float64)
        return {
            **no_moments(zero),
            "num_matvecs": 0,
            "size": self._size,
            "Q": torch.zeros(A.shape[1], 0, dtype=working_dtype(A), device=A.device),
            "on_sketch": zero,
            "rounding": zero,
            "rough": no_moments(zero),
            "needed": None,
        }

    def cost(self, state: State) -> int:
        """Two products for a column of the sketch, one for a probe."""
        return 2 if state["Q"].shape[1] < state["size"] else 1

    def step(self, state: State, most: int, generator: Generator) -> State:
        """More columns of the sketch, or more probes."""
        missing = state["size"] - state["Q"].shape[1]
        if missing:
            half = max(1, self._chunk_size // 2)
            return self._grown(state, min(most, missing, half), generator)
        return self._sampled(state, min(most, self._chunk_size), generator)

    def _grown(self, state: State, c: int, generator: Generator) -> State:
        A, Q, n = self._A, state["Q"], state["num_matvecs"]
        G = probes("signs", A, c, generator)
        Y = multiply(A, G, n)
        P, _ = extended(Q, Y, G)
        value, rounding = quadratic_forms(P, multiply(A, P, n + c), A.dtype)
        return {
            **state,
            "num_matvecs": n + 2 * c,
            "Q": torch.cat([Q, P], 1),
            "on_sketch": state["on_sketch"] + value.sum(),
            "rounding": state["rounding"] + rounding.sum(),
            "rough": with_samples(state["rough"], *quadratic_forms(G, Y, A.dtype)),
        }

    def _sampled(self, state: State, c: int, generator: Generator) -> State:
        A, Q, n = self._A, state["Q"], state["num_matvecs"]
        U = probes("normal", A, c, generator)
        U = U - Q @ (Q.mT @ U)
        U = U * ((Q.shape[0] - Q.shape[1]) ** 0.5 / U.norm(dim=0))
        more = with_samples(state, *quadratic_forms(U, multiply(A, U, n), A.dtype))
        return {**more, "num_matvecs": n + c}

    def estimate(self, state: State) -> tuple[Tensor, Tensor]:
        """The sum of both; from the probes of the sketch until there are samples."""
        if state["count"] < 2:
            return mean_and_error(state["rough"])
        mean, error = mean_and_error(state)
        return state["on_sketch"] + mean, torch.hypot(error, state["rounding"])

    def refined(self, state: State, need: float) -> State:
        """A sketch of twice the size, if that is cheaper than more samples.

        Tried if many samples are needed, and again as long as it has paid off.
        """
        k, before = state["size"], state["needed"]
        dear = need - state["count"] > 2 * k + FIRST_LOOK
        paid = before is None or before - need > k  # half of the sketch, two each
        if not (dear and paid):
            return {**state, "needed": 0.0}
        return {
            **state,
            **no_moments(state["mean"]),
            "size": 2 * k,
            "needed": need,
        }
