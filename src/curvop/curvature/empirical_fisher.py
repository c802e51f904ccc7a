"""The empirical Fisher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from curvop.curvature.factorable import FactorableLinearOperator
from curvop.curvature.output_factor import (
    OutputFactor,
    Per,
    check_terms,
    grouped,
    output_factor,
)
from curvop.derivatives import Aux, Outputs
from curvop.operators import Blocks
from curvop.risk import Loss


@final
class EFLinearOperator(FactorableLinearOperator):
    r"""The empirical Fisher (EF): the uncentred covariance of the gradients.

    .. math:: E = \frac{1}{Z} \sum_n g_n g_n^⊤ = \frac{1}{Z} J_ℓ^⊤ J_ℓ,
        \qquad g_n = ∇_θ ℓ_n

    with ``ℓ_n`` the loss of one prediction vector before reduction, ``J_ℓ`` the Jacobian
    of all of them and ``Z`` what the loss's reduction divides by. The options of the loss
    (weights, ignored targets, label smoothing) are part of its terms, which autodiff
    differentiates.

    Args:
        *args: Those of :class:`CurvatureLinearOperator`. The loss must have unreduced
            terms: a torch loss, or a callable with a keyword ``reduction``.
        per: What ``n`` counts. ``"output"``: prediction vectors, as curvlinops does; for
            classes a target, for an element-wise loss (MSE) a vector along the last axis,
            its terms summed. ``"term"``: the elements of the loss with
            ``reduction="none"`` (for cross-entropy a target, for MSE an element).
            ``"example"``: the entries of the leading axis, terms of one datum summed. The
            three agree where each datum has one term.
        **kwargs: Those of :class:`CurvatureLinearOperator`.

    Raises:
        TypeError: If the loss has no unreduced terms.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
    >>> E = EFLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
    >>> E @ torch.tensor([1.0, 1.0])
    tensor([16.,  0.])
    """

    def __init__(self, *args: Any, per: Per = "output", **kwargs: Any) -> None:
        if per not in ("term", "example", "output"):
            raise ValueError(f"Expected per='term', 'example' or 'output', got {per!r}.")
        self._per = per
        super().__init__(*args, **kwargs)

    def _psd_for(self, loss: Loss) -> bool:
        check_terms(loss)
        return True

    def _matmat_batch(self, X: Any, y: Any, M: Blocks) -> tuple[Blocks, Aux]:
        terms = self.risk.loss.terms
        assert terms is not None  # _psd_for has seen to it

        def groups(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            prediction = self.risk.predict(params, X)
            t = terms(prediction, y)
            tally = self.risk.tally(prediction, y, t.sum())
            N = self.risk.data.batch_size(X, y) if self._per == "example" else 0
            return (grouped(t, prediction, self._per, N),), tally

        def identity(outputs: Outputs, U: Blocks) -> tuple[Blocks, Aux]:
            return U, ()

        return self._differentiate.sandwich(
            groups, self.risk.parameters, M, identity, self.chunk_size
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
            kind="empirical",
            per=self._per,
        )
