"""The exact diagonal of the empirical Fisher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from curvop.curvature import CurvatureLinearOperator, EFLinearOperator
from curvop.diagonals.operator import CurvatureDiagonalLinearOperator
from curvop.diagonals.squared_gradients import ways_by_squared_gradients
from curvop.diagonals.ways import Way


@final
class EFDiagonalLinearOperator(CurvatureDiagonalLinearOperator):
    r"""The exact diagonal of the empirical Fisher (EF): squared gradients.

    .. math:: D = \frac{1}{Z} \sum_n g_n^2, \qquad g_n = ∇_θ ℓ_n

    Stored; see ``CurvatureDiagonalLinearOperator`` for what it offers. Cost and memory
    are those of :class:`GGNDiagonalLinearOperator` with as many columns as a datum has
    gradients: one, unless its prediction has several vectors that ``per`` tells apart.

    Args:
        *args: Those of :class:`EFLinearOperator`.
        **kwargs: Those of :class:`EFLinearOperator`, ``per`` too.

    Raises:
        TypeError: If an argument is of the wrong kind, or the loss offers no terms.
        ValueError: If an argument does not fit; the message says how to mend it.
        NonDeterministicError: If two passes over the data differ.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
    >>> D = EFDiagonalLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
    >>> D.diagonal()
    tensor([16.,  0.])
    """

    @staticmethod
    def _matrix(*args: Any, **kwargs: Any) -> CurvatureLinearOperator:
        return EFLinearOperator(*args, **kwargs)

    @staticmethod
    def _ways(*args: Any, **kwargs: Any) -> Sequence[Way]:
        return ways_by_squared_gradients()
