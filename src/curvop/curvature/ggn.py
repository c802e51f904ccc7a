"""The generalised Gauss-Newton matrix of an empirical risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from curvop.curvature import nested
from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.differentiation import Aux, Outputs
from curvop.curvature.losses import Loss
from curvop.curvature.parameters import Parameters
from curvop.operators.layout import Blocks


@final
class GGNLinearOperator(CurvatureLinearOperator):
    r"""The generalised Gauss-Newton matrix (GGN) of the empirical risk.

    .. math:: G = \frac{1}{Z} \sum_n J_n^⊤ \, ∇²_f ℓ(f_n, y_n) \, J_n,
        \qquad J_n = ∂f_θ(x_n) / ∂θ

    Positive semi-definite when the loss is convex in the prediction; then the tag
    ``psd`` is set for torch's own losses, and :func:`assume_psd` sets it for yours.
    For losses that are negative log-likelihoods of an exponential family in its natural
    parameters, ``G`` is the Fisher (Schraudolph, "Fast curvature matrix-vector products
    for second-order gradient descent", 2002; Martens, "New insights and perspectives on
    the natural gradient method", 2020). No Jacobian is formed. Arguments are those of
    :class:`CurvatureLinearOperator`.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
    >>> G = GGNLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
    >>> G @ torch.tensor([1.0, 1.0])
    tensor([8., 0.])
    """

    @staticmethod
    def _psd_for(loss: Loss) -> bool:
        return loss.convex

    def _matmat_batch(self, X: Any, y: Any, M: Blocks) -> tuple[Blocks, Aux]:
        form: list[Any] = []  # the structure that the model predicts in

        def predict(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            prediction = self._predict(params, X)
            form.append(prediction)
            return nested.differentiable(prediction), ()

        def loss_hessian(outputs: Outputs, U: Blocks) -> tuple[Blocks, Aux]:
            def total(outputs: Sequence[Tensor]) -> tuple[Outputs, Aux]:
                prediction = nested.refill(form[-1], outputs)
                loss = self._loss.total(prediction, y)
                return (loss,), self._tally(prediction, y, loss)

            at = Parameters(outputs, None, lambda p, X: p, functional=True)
            return self._differentiate.hessian(total, at, U, None)

        return self._differentiate.sandwich(
            predict, self._parameters, M, loss_hessian, self._chunk_size
        )
