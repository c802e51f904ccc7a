"""The exact diagonal of a curvature matrix, as an operator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from curvop.curvature import CurvatureLinearOperator
from curvop.diagonals.ways import Way, exact_diagonal
from curvop.operators import DiagonalLinearOperator, SingularSystemError
from curvop.risk import Given, listed


class CurvatureDiagonalLinearOperator(DiagonalLinearOperator):
    r"""The exact diagonal of a curvature matrix of an empirical risk.

    .. math:: D = \operatorname{diag}(A), \qquad D_{ii} = e_i^⊤ A \, e_i

    It is computed on construction, by one pass over the data, and stored: the operator
    does not follow later changes of the model. However the data is cut into mini-batches,
    it is the diagonal of the matrix of the loss on the concatenated data.

    Some entries are compared with products of the matrix on a few data. Where they differ,
    the model cannot be taken apart in this way (batch norm in train mode couples the data
    of a batch, say), and the next way is tried; the last one are products of the matrix
    with unit vectors, which are right for every model. :attr:`form` tells which it was.

    Subclasses implement :meth:`_matrix` and :meth:`_ways`, and are final.

    Args:
        model_func: As for the matrix, and so are the next two.
        loss_func: The loss.
        params: The parameters.
        *args: Those of the matrix.
        **kwargs: Those of the matrix.
    """

    def __init__(
        self, model_func: Any, loss_func: Any, params: Given, *args: Any, **kwargs: Any
    ) -> None:
        args = (model_func, loss_func, listed(params), *args)
        A = self._matrix(*args, **kwargs)
        diagonal, form = exact_diagonal(A, self._ways(*args, **kwargs))
        super().__init__(diagonal, names=A.domain_names)
        self._form = form

    # ---------------------------------------------------- what subclasses do

    @staticmethod
    @abstractmethod
    def _matrix(*args: Any, **kwargs: Any) -> CurvatureLinearOperator:
        """The matrix."""

    @staticmethod
    @abstractmethod
    def _ways(*args: Any, **kwargs: Any) -> Sequence[Way]:
        """The ways to compute the diagonal of a batch, the quickest first."""

    # ------------------------------------------------------------ what it is

    @property
    def form(self) -> str:
        """How the diagonal was computed.

        ``"layers"``: from inputs and gradients of the layers of the network.
        ``"data"``: from the gradients of each datum. ``"rows"``: from those of each datum
        through the graph of its batch. ``"columns"``: by products with unit vectors.
        """
        return self._form

    def diagonal(self) -> Tensor:
        """The entries as one vector, ``[P]``."""
        return torch.cat([d.flatten() for d in self._diagonal])

    def blocks(self) -> dict[str | int, Tensor]:
        """The entries in the shapes of the parameters, by name, or else by position."""
        keys: Iterable[str | int] = self.domain_names or range(len(self._diagonal))
        return dict(zip(keys, (d.clone() for d in self._diagonal), strict=True))

    def inverse(self, damping: float = 0.0) -> DiagonalLinearOperator:
        """``(D + damping I)⁻¹``.

        Args:
            damping: What is added to each entry.

        Raises:
            SingularSystemError: If an entry of ``D + damping I`` is zero or not finite.
        """
        damped = [d + damping for d in self._diagonal]
        if not all(bool(((d != 0) & d.isfinite()).all()) for d in damped):
            raise SingularSystemError(
                f"D + {damping} I is singular: an entry is zero. Expected damping, for "
                "instance 1e-3 of the largest entry, "
                f"{float(max(d.abs().max() for d in self._diagonal)):.3g}."
            )
        return DiagonalLinearOperator([1 / d for d in damped], names=self.domain_names)
