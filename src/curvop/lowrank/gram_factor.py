"""GramFactor: a curvature matrix as ``A = V Vᵀ``, solved by its Gram matrix ``VᵀV``."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from curvop.arguments import at_least
from curvop.eigenpairs import Eigenpairs
from curvop.lowrank.columns import FactorColumnsLinearOperator
from curvop.lowrank.directions import Directions, NewtonStep, check_damping, newton_step
from curvop.lowrank.inverse import GramInverseLinearOperator
from curvop.lowrank.spectrum import eigenpairs, nonzero
from curvop.operators import Blocks, LinearOperator, Vector, admit, read


@final
class GramFactor(LinearOperator):
    r"""A curvature matrix of few data in factor form, symmetric positive semi-definite.

    .. math:: A = V V^⊤, \qquad V \in ℝ^{P × R}, \qquad
        V_{(n,r)} = J_n^⊤ s_{n,r} / \sqrt{Z}, \qquad
        \sum_r s_{n,r} s_{n,r}^⊤ = ∇²_f ℓ(f_n, y_n)

    with a column for each datum and output (``R = N·C``), for each gradient (empirical
    Fisher) or for each sample (``mc_samples``). The ``R × R`` Gram matrix ``K = VᵀV`` has
    the eigenvalues of ``A`` that are not zero, and gives its eigenvectors, its inverse and
    its determinant: exactly, and for ``R`` much smaller than ``P`` in a fraction of the
    time of Krylov methods (Dangel, Tatzel, Hennig, "ViViT: curvature access through the
    generalized Gauss-Newton's low-rank structure", 2022).

    Made by :meth:`~curvop.GGNLinearOperator.factor` and
    :meth:`~curvop.EFLinearOperator.factor`. A product multiplies ``V (Vᵀ x)``; no pass
    through the network where ``V`` is kept.

    >>> import torch
    >>> from curvop import GGNLinearOperator
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[0.0]]))]
    >>> A = GGNLinearOperator(model, torch.nn.MSELoss(), model.parameters(), data).factor()
    >>> A.eigh().values
    tensor([18.0000])
    >>> A.inverse(2.0) @ torch.tensor([1.0, 2.0, 2.0])
    tensor([0.0500, 0.1000, 0.1000])
    """

    def __init__(self, V: FactorColumnsLinearOperator, gram_dtype: torch.dtype) -> None:
        super().__init__(
            V.output_space, V.output_space, dtype=V.dtype, device=V.device, psd=True
        )
        self._V = V
        self._K = V.gram(V, gram_dtype)

    @property
    def V(self) -> FactorColumnsLinearOperator:
        """The factor as an operator, ``[P, R]``; columns follow the data."""
        return self._V

    def gram(self, other: GramFactor | None = None) -> Tensor:
        """``VᵀV``, or ``VᵀV'`` with the factor of another matrix over these parameters.

        Args:
            other: Another factor, of other data, say. By default this one.

        Returns:
            ``[R, R']``, of the type ``gram_dtype``.

        Raises:
            TypeError: If ``other`` is no factor.
            ValueError: If it belongs to other parameters.
        """
        if other is None or other is self:
            return self._K.clone()
        if not isinstance(other, GramFactor):
            raise TypeError(f"Expected a GramFactor, got {type(other).__name__}.")
        if other.domain != self.domain or other.device != self.device:
            raise ValueError(
                f"Expected a factor over the same parameters, got blocks "
                f"{[tuple(s) for s in other.domain]} and {[tuple(s) for s in self.domain]}."
            )
        return self._V.gram(other._V, torch.promote_types(self._K.dtype, other._K.dtype))

    def eigvalsh(self) -> Tensor:
        """All eigenvalues of ``A`` that are not zero to rounding.

        Returns:
            Ascending, ``[k]`` with ``k <= R``, of the type ``gram_dtype``.
        """
        values: Tensor = torch.linalg.eigvalsh(self._K)
        return values[nonzero(values, self.dtype, len(values))]

    def eigh(self, k: int | None = None) -> Eigenpairs:
        """The eigenvalues of ``A`` that are not zero to rounding, with eigenvectors.

        Args:
            k: How many, the largest; by default all. Each vector has ``P`` entries.

        Returns:
            Eigenpairs, values ascending, ``[k]``, or fewer where the rank is smaller.

        Raises:
            TypeError: If ``k`` is no integer.
            ValueError: If it is not positive.
        """
        return eigenpairs(self._V, self._K, None if k is None else at_least(1, "k", k))

    def inverse(self, damping: float) -> GramInverseLinearOperator:
        r"""``(A + λ I)⁻¹`` by the identity of Woodbury, exact.

        Args:
            damping: ``λ``, positive.

        Returns:
            A symmetric operator that also draws :meth:`~GramInverseLinearOperator.sample`
            and tells :meth:`~GramInverseLinearOperator.logdet`.

        Raises:
            TypeError: If ``damping`` is no number.
            ValueError: If it is not positive, or below what rounding leaves of ``A``.
        """
        return GramInverseLinearOperator(self._V, self._K, check_damping(damping))

    def logdet(self, damping: float) -> float:
        r"""``log det(A + λ I)``, exact.

        Args:
            damping: ``λ``, positive; see :meth:`inverse`.
        """
        return self.inverse(damping).logdet()

    def trace(self) -> float:
        """The trace of ``A``."""
        return float(self._K.trace())

    def frobenius_norm(self) -> float:
        """The Frobenius norm of ``A``."""
        return float(self._K.norm())

    def directions(self, gradient: Vector, k: int | None = None) -> Directions:
        """First and second derivative of the loss along the eigenvectors of ``A``.

        Args:
            gradient: Of the loss, in the form of any vector.
            k: Number of directions, those of largest curvature; by default all.

        Returns:
            The derivatives, and Newton steps in the span of the directions.
        """
        g, pairs = self._vector(gradient), self.eigh(k)
        return Directions(pairs.values, pairs.vectors, pairs.vectors.T @ g)

    def newton_step(self, gradient: Vector, damping: float) -> NewtonStep:
        """``d = -(A + λ I)⁻¹ g``, with what the quadratic model says of it.

        Args:
            gradient: ``g``, in the form of any vector.
            damping: ``λ``, positive; see :meth:`inverse`.
        """
        g = self._vector(gradient)
        return newton_step(self._V, -(self.inverse(damping) @ g), g)

    def _vector(self, x: Vector) -> Tensor:
        """One vector in any form, as one tensor ``[P]``."""
        blocks, form = read(x, self.input_space)
        if not form.is_vector:
            raise ValueError("Expected one gradient, got a matrix of several.")
        return torch.cat(
            [admit(b, self.dtype, self.device).detach().flatten() for b in blocks]
        )

    def _matmat(self, M: Blocks) -> Blocks:
        return self._V._matmat(self._V._rmatmat(M))

    def _transpose(self) -> LinearOperator:
        return self
