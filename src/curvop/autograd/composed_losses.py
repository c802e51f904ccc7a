"""Losses whose torch kernels cannot be differentiated twice, composed of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from curvop.autograd.kernels import within

Value = TypeVar("Value")


class ComposedLosses(TorchFunctionMode):
    """Context in which the losses of this file replace those of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the composed loss, if there is one."""
        return COMPOSED.get(func, func)(*args, **(kwargs or {}))


def composed(loss: Callable[[Any, Any], Value]) -> Callable[[Any, Any], Value]:
    """The same loss, differentiable twice even where torch's kernel is not."""
    return within(ComposedLosses, loss)


def _reduce(terms: Tensor, size_average: Any, reduce: Any, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if reduction == "none":
        return terms
    return terms.mean() if reduction == "mean" else terms.sum()


def multi_margin_loss(
    input: Tensor,  # [N, C] or [C]
    target: Tensor,  # [N] or []
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``wᵧ Σ_{c ≠ y} max(0, margin − x_y + x_c)ᵖ / C``, as ``F.multi_margin_loss``."""
    C = input.shape[-1]
    right = input.gather(-1, target[..., None])
    violation = (margin - right + input).relu() ** p * (1 - F.one_hot(target, C))
    terms = violation.sum(-1) / C
    if weight is not None:
        terms = weight[target] * terms
    return _reduce(terms, size_average, reduce, reduction)


def multilabel_margin_loss(
    input: Tensor,  # [N, C] or [C]
    target: Tensor,  # like input: labels, up to the first -1
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``Σ_{s ∈ y, c ∉ y} max(0, 1 − x_s + x_c) / C``, as ``F.multilabel_margin_loss``."""
    C = input.shape[-1]
    is_label = ((target < 0).cumsum(-1) == 0)[..., None]
    target = target.clamp_min(0)
    outside = ~(F.one_hot(target, C).bool() & is_label).any(-2, keepdim=True)
    right = input.gather(-1, target)[..., None]
    violation = (1 - right + input[..., None, :]).relu() * (is_label & outside)
    return _reduce(violation.sum((-2, -1)) / C, size_average, reduce, reduction)


def ctc_loss(
    log_probs: Tensor,  # [T, N, C] or [T, C]
    targets: Tensor,  # [N, S], or all of them in one row
    input_lengths: Any,  # [N]
    target_lengths: Any,  # [N]
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Minus the logarithm of the sum over all alignments, as ``F.ctc_loss``.

    The forward recursion of Graves et al., "Connectionist temporal classification"
    (2006), over the labels with blanks between and around them.
    """
    is_batch = log_probs.ndim == 3
    lengths, sizes = (
        torch.as_tensor(n, device=log_probs.device).reshape(-1)
        for n in (input_lengths, target_lengths)
    )
    if not is_batch:
        log_probs, targets = log_probs[:, None], targets.reshape(1, -1)
    elif targets.ndim == 1:
        targets = pad_sequence(list(targets.split(sizes.tolist())), batch_first=True)
    total = _alignments(log_probs, targets.long().to(lengths.device), lengths, sizes, blank)
    impossible = total < _never(total) / 2
    terms = torch.where(impossible, 0.0 if zero_infinity else torch.inf, -total)
    if reduction == "mean":
        terms = terms / sizes.clamp_min(1)
    return _reduce(terms if is_batch else terms[0], None, None, reduction)


def linear_cross_entropy(*args: Any, **kwargs: Any) -> Any:
    """Not in chunks, whose second derivatives are wrong; new in torch 2.13."""
    return F.linear_cross_entropy(*args, **{**kwargs, "options": None})


def _alignments(
    log_probs: Tensor, targets: Tensor, lengths: Tensor, sizes: Tensor, blank: int
) -> Tensor:
    """Log-probability of each target: the sum over its alignments, ``[N]``."""
    never = _never(log_probs)
    N, S = targets.shape
    states = torch.full((N, 2 * S + 1), blank, device=targets.device)
    known = torch.arange(S, device=targets.device) < sizes[:, None]
    states[:, 1::2] = torch.where(known, targets, blank)
    may_skip = states != _delayed(states, 2, blank)  # a blank between other labels
    emission = log_probs.gather(2, states.expand(len(log_probs), -1, -1))
    is_start = torch.arange(2 * S + 1, device=targets.device) < 2
    alpha = torch.where(is_start, emission[0], never)
    for t in range(1, len(log_probs)):
        skipped = torch.where(may_skip, _delayed(alpha, 2, never), never)
        before = torch.stack([alpha, _delayed(alpha, 1, never), skipped]).logsumexp(0)
        alpha = torch.where((t < lengths)[:, None], before + emission[t], alpha)
    last = alpha.gather(1, 2 * sizes[:, None])[:, 0]
    label = alpha.gather(1, (2 * sizes[:, None] - 1).clamp_min(0))[:, 0]
    # not logaddexp, whose second derivative at such a difference is NaN
    return torch.stack([last, torch.where(sizes > 0, label, never)]).logsumexp(0)


def _delayed(x: Tensor, steps: int, fill: float) -> Tensor:
    return F.pad(x, (steps, 0), value=fill)[:, : x.shape[1]]


def _never(x: Tensor) -> float:
    """In place of ``log 0``: finite, since derivatives at ``-inf`` are NaN."""
    return torch.finfo(x.dtype).min / 4


COMPOSED: dict[Any, Callable[..., Tensor]] = {
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    F.ctc_loss: ctc_loss,
}
if hasattr(F, "linear_cross_entropy"):
    COMPOSED[F.linear_cross_entropy] = linear_cross_entropy
