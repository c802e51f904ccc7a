"""``(V Vᵀ + λ I)⁻¹`` as an operator."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor

from curvop.arguments import at_least
from curvop.generators import source
from curvop.lowrank.columns import FactorColumnsLinearOperator
from curvop.lowrank.spectrum import nonzero
from curvop.operators import Blocks, LinearOperator


@final
class GramInverseLinearOperator(LinearOperator):
    r"""The inverse of a damped matrix in factor form, by the identity of Woodbury.

    .. math:: (V V^⊤ + λ I)^{-1} = \frac{1}{λ} \left( I - V (V^⊤ V + λ I)^{-1} V^⊤ \right)

    Made by :meth:`~curvop.lowrank.GramFactor.inverse`. A product solves and refines once,
    since the difference cancels where ``λ`` is small.

    Attributes:
        damping: ``λ``.

    >>> import torch
    >>> from curvop import GGNLinearOperator
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]]))]
    >>> G = GGNLinearOperator(model, torch.nn.MSELoss(), model.parameters(), data)
    >>> G.factor().inverse(2.0) @ torch.tensor([1.0, 1.0])
    tensor([0.2500, 0.5000])
    """

    def __init__(self, V: FactorColumnsLinearOperator, K: Tensor, damping: float) -> None:
        super().__init__(
            V.output_space, V.output_space, dtype=V.dtype, device=V.device, psd=True
        )
        self._V = V
        self._K = K
        self.damping = damping
        damped = K.clone()
        damped.diagonal().add_(damping)
        self._L, info = torch.linalg.cholesky_ex(damped)
        least = torch.finfo(K.dtype).eps * float(K.norm())
        if int(info) or damping < least:
            raise ValueError(
                f"Expected a damping of at least {least:.1e}, what rounding to {K.dtype} "
                f"leaves of this matrix, got {damping:.1e}. Take more, or "
                "factor(gram_dtype=torch.float64)."
            )

    def logdet(self) -> float:
        r"""``log det(V Vᵀ + λ I)``, exact: of the matrix whose inverse this is."""
        values = torch.linalg.eigvalsh(self._K)
        values = values[nonzero(values, self.dtype, len(values))]
        ratios = torch.log1p(values / self.damping)  # of directions without curvature: zero
        return self.shape[0] * math.log(self.damping) + float(ratios.sum())

    def sample(self, num_samples: int = 1, *, generator: Generator | None = None) -> Tensor:
        r"""Draw from the normal distribution with this covariance.

        .. math:: x = (V V^⊤ + λ I)^{-1} (V ε_1 + \sqrt{λ} ε_2) ∼
            \mathcal{N}\left(0, (V V^⊤ + λ I)^{-1}\right)

        Exact, from standard normal ``ε``. The posterior of Laplace's approximation, with
        the prior precision ``λ``.

        Args:
            num_samples: How many.
            generator: Source of the numbers. By default a fresh one, seeded by the
                operating system; no global generator is touched.

        Returns:
            Columns ``[P, num_samples]``.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If ``num_samples`` is not positive.
        """
        count = at_least(1, "num_samples", num_samples)
        generator = source(generator, device=self.device)
        P, R = self._V.shape
        where = generator.device
        e = torch.randn(R + P, count, generator=generator, dtype=self.dtype, device=where)
        e1, e2 = e.to(self.device).split([R, P])
        samples: Tensor = self @ (self._V @ e1 + math.sqrt(self.damping) * e2)
        return samples

    def _matmat(self, M: Blocks) -> Blocks:
        X = self._solve(M)
        AX = self._V._matmat(self._V._rmatmat(X))
        triples = zip(M, AX, X, strict=True)
        rest = [b - Ax - self.damping * x for b, Ax, x in triples]
        return [x + dx for x, dx in zip(X, self._solve(rest), strict=True)]

    def _solve(self, M: Blocks) -> Blocks:
        (VM,) = self._V._rmatmat(M)
        U = torch.cholesky_solve(VM.to(self._L.dtype), self._L).to(self.dtype)
        VU = self._V._matmat([U])
        return [(b - vu) / self.damping for b, vu in zip(M, VU, strict=True)]

    def _transpose(self) -> LinearOperator:
        return self
