"""The standard eigenproblem that Lanczos solves in place of the given one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvop.operators import (
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
)


@dataclass(frozen=True)
class SpectralTransformation:
    """``B u = θ u`` in place of ``A x = λ P x``.

    Attributes:
        B: ``A``, or ``A⁻¹``, or ``P^(-1/2) A P^(-1/2)``.
        inverted: Whether ``θ = 1/λ``.
        root: ``P^(-1/2)`` as a vector ``[N]``, if ``x = P^(-1/2) u``; of the order of one.
        size: A power of four by which ``P`` is divided.
    """

    B: LinearOperator
    inverted: bool = False
    root: Tensor | None = None
    size: float = 1.0

    @classmethod
    def of(
        cls, A: LinearOperator, P: LinearOperator | None, inverse: LinearOperator | None
    ) -> SpectralTransformation:
        """The transform for this problem.

        Raises:
            ValueError: If ``P`` is not diagonal, or not positive.
        """
        if inverse is not None:
            if P is not None:
                raise ValueError("Expected P or inverse, got both.")
            return cls(inverse, inverted=True)
        if P is None:
            return cls(A)
        if not isinstance(P, DiagonalLinearOperator | IdentityLinearOperator):
            raise ValueError(
                f"Lanczos needs P as a DiagonalLinearOperator, got {P}. Say "
                "method='lobpcg' for another P, with M close to its inverse."
            )
        d: Tensor = P @ torch.ones(P.shape[0], dtype=P.dtype, device=P.device)
        if not bool((d > 0).all()) or not bool(torch.isfinite(d).all()):
            raise ValueError(
                f"Expected a P with positive entries, got {float(d.min()):.3g} as the "
                "smallest. Add a damping term."
            )
        size = 4.0 ** (math.frexp(float(d.max()))[1] // 2)
        root = (d / size).rsqrt()
        D = DiagonalLinearOperator(root)
        return cls(D @ A @ D, root=root, size=size)

    @property
    def plain(self) -> bool:
        """Whether nothing is transformed."""
        return self.root is None and not self.inverted

    def values(self, theta: Tensor) -> Tensor:
        """``λ``."""
        return 1 / theta if self.inverted else theta / self.size

    def start(self, V: Tensor | None) -> Tensor | None:
        """Start vectors of the standard problem, as rows."""
        return V if V is None or self.root is None else V / self.root

    def back(self, X: Tensor) -> None:
        """Eigenvectors of the problem, as rows, in place."""
        if self.root is not None:
            for x in X:
                x *= self.root / self.size**0.5
