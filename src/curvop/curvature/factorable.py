"""Curvature matrices that are sums of outer products, ``A = V Vᵀ``."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.output_factor import OutputFactor

if TYPE_CHECKING:
    from curvop.lowrank import GramFactor


class FactorableLinearOperator(CurvatureLinearOperator):
    r"""A curvature matrix with a factor in the space of predictions.

    .. math:: A = \frac{1}{Z} \sum_n J_n^⊤ \Big( \sum_r s_{n,r} s_{n,r}^⊤ \Big) J_n

    Subclasses implement :meth:`_output_factor` too, and are final.
    """

    def factor(
        self, memory_budget: int | None = None, *, gram_dtype: torch.dtype | None = None
    ) -> GramFactor:
        """The same matrix as ``A = V Vᵀ``, with a column for each datum and output.

        (For a sampled Fisher for each sample, for an empirical one for each gradient.)

        For few data: the Gram matrix ``VᵀV`` then gives the exact spectrum, the inverse
        and the determinant. Columns are kept as outer products for the weights of linear
        layers, and as they are for other parameters. The first product is compared with the
        operator's own.

        Args:
            memory_budget: Bytes for columns. What does not fit is computed again when
                needed, from the data, which the factor then holds. By default everything
                is kept.
            gram_dtype: Type to compute the Gram matrix in; by default the operator's own,
                at least single precision. Small eigenvalues and small damping of models in
                single precision need ``torch.float64``.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If one is out of range, the loss is not convex, the matrix is
                block-diagonal or its data is spread over processes.

        >>> import torch
        >>> from curvop import GGNLinearOperator
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
        >>> G = GGNLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
        >>> G.factor().V.to_dense()
        tensor([[2.8284],
                [0.0000]])
        """
        # the door up: the factor is built on operators, and this method on the factor
        from curvop.lowrank import factor

        return factor(self, memory_budget=memory_budget, gram_dtype=gram_dtype)

    @abstractmethod
    def output_factor(
        self, prediction: Any, X: Any, y: Any, *, fewest: bool = False
    ) -> OutputFactor:
        """``S`` with the columns ``s`` of one batch."""
