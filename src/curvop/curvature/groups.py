"""What has a gradient of its own in the empirical Fisher: a term, a datum, an output."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from curvop.curvature.losses import Loss, LossFunction

Per = Literal["term", "example", "output"]


def grouped(terms: Tensor, prediction: Any, per: Per, num_data: int) -> Tensor:
    """Loss terms, summed over what belongs to the same gradient.

    Args:
        terms: Unreduced.
        prediction: What they were computed from.
        per: See :class:`EFLinearOperator`.
        num_data: Number of data in the batch.

    Raises:
        ValueError: If the terms do not have the data leading.
    """
    if per == "output":
        is_elementwise = isinstance(prediction, Tensor) and terms.shape == prediction.shape
        return terms.sum(-1) if is_elementwise and terms.ndim > 1 else terms
    if per == "example" and terms.ndim > 0:
        if terms.shape[0] != num_data:
            raise ValueError(
                f"Expected loss terms with the {num_data} examples of the batch as leading "
                f"axis, got shape {tuple(terms.shape)}. Keep the batch axis of the "
                "prediction (for cross-entropy [N, C, T]), or pass batch_size_fn."
            )
        return terms.flatten(1).sum(1) if terms.ndim > 1 else terms
    return terms


def check_terms(loss: Loss) -> LossFunction:
    """The unreduced terms.

    Raises:
        TypeError: If the loss does not offer them.
    """
    if loss.terms is None:
        raise TypeError(
            "The empirical Fisher needs the unreduced terms of the loss, and this "
            "callable only gives a scalar. Pass a torch loss module, or a callable "
            "with a keyword reduction that understands 'none'."
        )
    return loss.terms
