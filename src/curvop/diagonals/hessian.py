"""The exact diagonal of the Hessian."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

from curvop.curvature import (
    CurvatureLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
)
from curvop.diagonals.operator import CurvatureDiagonalLinearOperator
from curvop.diagonals.second_derivatives import ways_by_second_derivatives
from curvop.diagonals.ways import Way


@final
class HessianDiagonalLinearOperator(CurvatureDiagonalLinearOperator):
    r"""The exact diagonal of the Hessian.

    .. math:: D_{ii} = \frac{∂^2 L}{∂θ_i^2}

    Stored; see ``CurvatureDiagonalLinearOperator`` for what it offers.

    Each entry takes a product with a unit vector, of which only the part through its own
    parameter is computed. There are two short cuts. Where the prediction is piecewise
    linear in a parameter (ReLU, max-pooling, norms in evaluation; the last layer of any
    network), its block of the Hessian is that of the GGN, see
    :class:`GGNDiagonalLinearOperator`; each batch is tested for it. And a layer
    ``a = W z`` that is called once, with ``m`` outputs at ``T`` positions, needs only the
    Hessian in ``a``,

    .. math:: \frac{∂^2 L}{∂W_{oi}^2} = \sum_n \sum_{t,t'}
        \frac{∂^2 ℓ_n}{∂a_{n,t,o} ∂a_{n,t',o}} \, z_{n,t,i} z_{n,t',i} ,

    from ``m T`` products for all data at once: for a perceptron as many as neurons rather
    than weights. It is used where positions are fewer than inputs.

    Cost: a backward pass through the graph of a gradient for each of these columns, and for
    each entry of the other parameters: in networks with curved activations those of
    convolutions over large images, norms, embeddings, parameters used twice. That is as
    many products as parameters; :func:`~curvop.diagonal` estimates with error bars.
    Memory: the graph of the gradient of one batch, and for a chunk of columns
    (``chunk_size``) once more its activations.

    Args:
        *args: Those of :class:`HessianLinearOperator`.
        **kwargs: Those of :class:`HessianLinearOperator`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit; the message says how to mend it.
        NonDeterministicError: If two passes over the data differ.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
    >>> D = HessianDiagonalLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
    >>> D.diagonal()
    tensor([12.,  0.])
    """

    @staticmethod
    def _matrix(*args: Any, **kwargs: Any) -> CurvatureLinearOperator:
        return HessianLinearOperator(*args, **kwargs)

    @staticmethod
    def _ways(*args: Any, **kwargs: Any) -> Sequence[Way]:
        kwargs["check_deterministic"] = False  # the Hessian has been checked
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # and has warned
            return ways_by_second_derivatives(GGNLinearOperator(*args, **kwargs))
