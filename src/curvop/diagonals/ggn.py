"""The exact diagonal of the generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from curvop.curvature import CurvatureLinearOperator, GGNLinearOperator
from curvop.diagonals.operator import CurvatureDiagonalLinearOperator
from curvop.diagonals.squared_gradients import ways_by_squared_gradients
from curvop.diagonals.ways import Way


@final
class GGNDiagonalLinearOperator(CurvatureDiagonalLinearOperator):
    r"""The exact diagonal of the generalised Gauss-Newton matrix (GGN).

    .. math:: D = \frac{1}{Z} \sum_n \sum_{r=1}^R \left( J_n^⊤ s_{n,r} \right)^2,
        \qquad \sum_r s_{n,r} s_{n,r}^⊤ = ∇²_f ℓ(f_n, y_n)

    Stored; see ``CurvatureDiagonalLinearOperator`` for what it offers. For losses that
    are not convex, the columns ``s`` have signs. ``R`` is the number of entries of a
    prediction for one datum, or ``mc_samples``.

    Cost: ``R`` backward passes to the inputs of the layers, of all data of a batch at once
    (Dangel, Kunstner, Hennig, "BackPACK: packing more into backprop", 2020, for the idea),
    and the squares of the gradients of each datum, which for linear layers on vectors take
    one matrix product per batch. Parameters outside of layers (linear and
    bilinear ones, convolutions and transposed ones, norms, embeddings, the projections of
    attention and of recurrent layers) are differentiated for each datum.

    Memory: the activations of one batch, and for a chunk of columns (``chunk_size``) once
    more, as a product of the matrix takes. Gradients of data, patches of convolutions and
    the like are held for as many data as keep them below a quarter of a million numbers (at
    least one), and four million where they come from vmap.

    Args:
        *args: Those of :class:`GGNLinearOperator`.
        **kwargs: Those of :class:`GGNLinearOperator`, ``mc_samples`` and ``seed`` too.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit; the message says how to mend it.
        NonDeterministicError: If two passes over the data differ.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 3.0]]), torch.tensor([0.0]))]
    >>> D = GGNDiagonalLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
    >>> D.diagonal().round()
    tensor([  8., 288.])
    """

    @staticmethod
    def _matrix(*args: Any, **kwargs: Any) -> CurvatureLinearOperator:
        return GGNLinearOperator(*args, **kwargs)

    @staticmethod
    def _ways(*args: Any, **kwargs: Any) -> Sequence[Way]:
        return ways_by_squared_gradients()
