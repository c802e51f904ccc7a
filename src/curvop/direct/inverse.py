"""The inverse of a damped chain Hessian as an operator."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from curvop.derivatives import leading, trailing
from curvop.direct.block_elimination import GROWTH, factorise, solve
from curvop.direct.newton_system import NewtonSystem
from curvop.operators import Blocks, LinearOperator, SingularSystemError, Space


@final
class ChainInverseLinearOperator(LinearOperator):
    """``(H + ε I)⁻¹`` of a chain network, factored.

    Made by :meth:`ChainHessianLinearOperator.inverse`. A product solves, refines, and
    checks the residual. Tagged ``psd`` if ``H + ε I`` turned out to be so.

    Attributes:
        damping: ``ε``.

    >>> import torch
    >>> from curvop import ChainHessianLinearOperator
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    >>> X, y = torch.tensor([[2.0]]), torch.tensor([[0.0]])
    >>> H = ChainHessianLinearOperator(model, torch.nn.MSELoss(), X, y)  # 2 x²
    >>> H.inverse(2.0) @ torch.tensor([1.0])
    tensor([0.1000])
    """

    def __init__(
        self,
        problem: NewtonSystem,
        space: Space,
        damping: float,
        *,
        refine: int,
        rtol: float | None,
        dtype: torch.dtype,
        growth: float = GROWTH,
    ) -> None:
        self._system = problem
        self._steps = factorise(problem, damping, growth)
        self.damping, self._refine, self._rtol = damping, refine, rtol
        super().__init__(
            space,
            space,
            dtype=dtype,
            device=problem.loss_hessian.device,
            symmetric=True,
            psd=self.num_negative() == 0,
        )

    def logabsdet(self) -> float:
        """``log |det(H + ε I)|``, from the pivots."""
        return sum(step.logabsdet for step in self._steps)

    def num_negative(self) -> int:
        """Number of negative eigenvalues of ``H + ε I``, by Sylvester's law of inertia."""
        return sum(step.num_negative for step in self._steps)

    def nbytes(self) -> int:
        """Bytes that the factors take, beyond the derivatives of the chain."""
        return sum(step.nbytes for step in self._steps)

    def _matmat(self, M: Blocks) -> Blocks:
        b = self._system.pack(leading(M))
        norms = _norms(b)
        if not bool(torch.isfinite(norms).all()):
            raise ValueError(
                "Expected finite right-hand sides, got NaN or infinity. Look for them "
                "with torch.isfinite(b)."
            )
        x = solve(self._system, self._steps, b)
        for _ in range(self._refine):
            correction = solve(self._system, self._steps, self._residual(x, b))
            x = [part.add_(dx) for part, dx in zip(x, correction, strict=True)]
        if self._rtol is not None:
            self._check(_norms(self._residual(x, b)), norms, self._rtol)
        return trailing([block.to(self.dtype) for block in self._system.unpack(x)])

    def _residual(self, x: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """``b − (H + εI) x``."""
        triples = zip(b, self._system.product(x), x, strict=True)
        return [torch.sub(b, Hx).sub_(x, alpha=self.damping) for b, Hx, x in triples]

    def _check(self, residuals: Tensor, norms: Tensor, rtol: float) -> None:
        """Check the residual, since a singular system may have finite factors."""
        worst = float((residuals / norms.clamp(min=1e-300)).max())
        if not worst <= rtol:
            raise SingularSystemError(
                f"The relative residual is {worst:.1e}, more than rtol = {rtol:.1e}: "
                f"H + {self.damping:g} I is singular to working precision. Choose another "
                "damping, more steps of refinement, or a larger rtol."
            )

    def _transpose(self) -> LinearOperator:
        return self


def _norms(x: list[Tensor]) -> Tensor:
    """Norms of the ``K`` vectors."""
    parts = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in x])
    norms: Tensor = torch.linalg.vector_norm(parts, dim=0)
    return norms
