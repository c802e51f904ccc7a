"""The Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from curvop.curvature.base import CurvatureLinearOperator
from curvop.derivatives import Aux, Outputs
from curvop.operators import Blocks
from curvop.risk import Loss

# Parameters of a convolutional network from which one column at a time is faster on a CPU:
# under vmap, a convolution with a tangent for each column becomes a grouped one.
WIDE = 2**20


@final
class HessianLinearOperator(CurvatureLinearOperator):
    r"""The Hessian of the empirical risk.

    .. math:: H = ∇²_θ L(θ) = \frac{1}{Z} \sum_n ∇²_θ ℓ(f_θ(x_n), y_n)

    Multiplied by reverse-over-reverse differentiation (Pearlmutter, "Fast exact
    multiplication by the Hessian", 1994), right through every norm layer. Arguments are
    those of :class:`CurvatureLinearOperator`.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
    >>> H = HessianLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
    >>> H @ torch.tensor([1.0, 1.0])
    tensor([12.,  0.])
    """

    _derivatives = ("hessian",)

    def _psd_for(self, loss: Loss) -> bool:
        return False

    def _columns_per_pass(self, X: Any) -> int | None:
        is_wide = self.risk.parameters.convolutional and self.shape[0] >= WIDE
        if self.chunk_size == "auto" and is_wide and self.device.type == "cpu":
            return 1
        return super()._columns_per_pass(X)

    def _matmat_batch(self, X: Any, y: Any, M: Blocks) -> tuple[Blocks, Aux]:
        def total(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            prediction = self.risk.predict(params, X)
            loss = self.risk.loss.total(prediction, y)
            return (loss,), self.risk.tally(prediction, y, loss)

        return self._differentiate.hessian(total, self.risk.parameters, M, self.chunk_size)
