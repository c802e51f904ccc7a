"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, final

import torch
from torch import Tensor

from curvop.curvature.factorable import FactorableLinearOperator
from curvop.curvature.output_factor import (
    SEED,
    OutputFactor,
    outer_products,
    output_factor,
)
from curvop.derivatives import Aux, Outputs
from curvop.operators import Blocks
from curvop.risk import Loss, Parameters, check_predictive, nested, refuse_reading


@final
class GGNLinearOperator(FactorableLinearOperator):
    r"""The generalised Gauss-Newton matrix (GGN) of the empirical risk.

    .. math:: G = \frac{1}{Z} \sum_n J_n^⊤ \, ∇²_f ℓ(f_n, y_n) \, J_n,
        \qquad J_n = ∂f_θ(x_n) / ∂θ

    Positive semi-definite when the loss is convex in the prediction; then the tag
    ``psd`` is set for torch's own losses, and :func:`assume_psd` sets it for yours.
    For losses that are negative log-likelihoods of an exponential family in its natural
    parameters, ``G`` is the Fisher (Schraudolph, "Fast curvature matrix-vector products
    for second-order gradient descent", 2002; Martens, "New insights and perspectives on
    the natural gradient method", 2020). No Jacobian is formed.

    With ``mc_samples`` the Hessian of the loss is replaced by samples: the Monte-Carlo
    Fisher, whose mean over seeds is ``G``,

    .. math:: \frac{1}{Z} \sum_n J_n^⊤ \Big( \frac{1}{m} \sum_{i=1}^m s_{n,i}
        s_{n,i}^⊤ \Big) J_n, \qquad \mathbb{E}\, s_{n,i} s_{n,i}^⊤ = ∇²_f ℓ(f_n, y_n)

    with ``s`` the gradients at targets drawn from the predictive distribution of the loss.
    The samples of a datum are a function of its content and the seed: the matrix is the
    same at every product, in every precision, and however the data is ordered or batched.
    Equal data have equal samples.

    Args:
        *args: Those of :class:`CurvatureLinearOperator`.
        mc_samples: Number of samples for each datum; zero for the exact matrix.
        seed: Seed of the samples.
        **kwargs: Those of :class:`CurvatureLinearOperator`.

    Raises:
        ValueError: If the predictive distribution of the loss is not known; see
            :func:`register_predictive`.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
    >>> G = GGNLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
    >>> G @ torch.tensor([1.0, 1.0])
    tensor([8., 0.])
    """

    def __init__(
        self, *args: Any, mc_samples: int = 0, seed: int = SEED, **kwargs: Any
    ) -> None:
        for name, number in (("mc_samples", mc_samples), ("seed", seed)):
            if not isinstance(number, Integral) or isinstance(number, bool):
                raise TypeError(f"Expected {name} as an integer, got {number!r}.")
        if mc_samples < 0:
            raise ValueError(f"Expected mc_samples of at least 0, got {mc_samples}.")
        self._mc_samples = int(mc_samples)
        self._seed = int(seed)
        super().__init__(*args, **kwargs)

    def _psd_for(self, loss: Loss) -> bool:
        if self._mc_samples:
            check_predictive(loss)
        return loss.convex or self._mc_samples > 0

    def batch_product(self, X: Any, y: Any, V: Blocks) -> Any:
        """The product of one batch; the loss must depend on the prediction alone."""
        refuse_reading(self.risk, X, y)
        return super().batch_product(X, y, V)

    def _matmat_batch(self, X: Any, y: Any, M: Blocks) -> tuple[Blocks, Aux]:
        form: list[Any] = []  # the structure of the prediction

        def predict(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            prediction = self.risk.predict(params, X)
            form.append(prediction)
            return nested.differentiable(prediction), ()

        def samples(outputs: Outputs, U: Blocks) -> tuple[Blocks, Aux]:
            if not form:  # the graph was kept, the structure was not
                form.append(self.risk.predict(self.risk.parameters.tensors, X))
            prediction = nested.refill(form[-1], outputs)
            N = self.risk.data.batch_size(X, y)
            S = self.output_factor(prediction, X, y).blocks(slice(None))
            with torch.no_grad():
                return outer_products(S, U, N), self.risk.tally(prediction, y)

        def loss_hessian(outputs: Outputs, U: Blocks) -> tuple[Blocks, Aux]:
            def total(outputs: Sequence[Tensor]) -> tuple[Outputs, Aux]:
                prediction = nested.refill(form[-1], outputs)
                loss = self.risk.loss.total(prediction, y)
                return (loss,), self.risk.tally(prediction, y, loss)

            at = Parameters(outputs, None, lambda p, X: p, functional=True)
            return self._differentiate.hessian(total, at, U, None)

        middle = samples if self._mc_samples else loss_hessian
        return self._differentiate.sandwich(
            predict, self.risk.parameters, M, middle, self.chunk_size
        )

    def output_factor(
        self, prediction: Any, X: Any, y: Any, *, fewest: bool = False
    ) -> OutputFactor:
        """``S`` with ``S Sᵀ`` between ``Jᵀ`` and ``J``."""
        return output_factor(
            self.risk.loss,
            prediction,
            y,
            num_data=self.risk.data.batch_size(X, y),
            kind="mc" if self._mc_samples else "type-2",
            mc_samples=self._mc_samples,
            seed=self._seed,
            X=X,
            way=self._differentiate,
            fewest=fewest,
        )
