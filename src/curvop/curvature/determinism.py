"""The determinism check: two passes over the data, and the proof in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from curvop.curvature.proof import Proof, few, probes
from curvop.derivatives import Differentiation
from curvop.operators import Blocks, differ, refuse_not_finite, tolerance
from curvop.risk import (
    Risk,
    all_reduce,
    failing_together,
    gradient_of_batch,
    gradient_over_data,
    nested,
    refuse_hidden,
)

Found = tuple[tuple[Differentiation, ...], Proof]


class NonDeterministicError(RuntimeError):
    """Two passes over the same data gave different results."""


@dataclass(frozen=True)
class Sample:
    """Results for the first batch.

    Attributes:
        X: Inputs of a few data.
        y: Their targets.
        is_random: Whether the gradient of the batch differs when computed again.
    """

    X: Any
    y: Any
    is_random: bool


def check_deterministic(
    risk: Risk,
    prove: Callable[[Any, Any], Found],
    multiply: Callable[[tuple[Differentiation, ...] | None, Blocks], list[Tensor]],
) -> Found | None:
    """Pass over the data twice and compare; prove the product on a few data.

    Randomness of the data is noticed in the loss, for which the second pass is made;
    randomness of the model in the gradient of the first batch, computed twice. If only the
    gradients differ, products decide: a gradient may vanish by cancellation between data,
    and then consists of rounding errors.

    The random generators are not reset between the passes, so that dropout and shuffling
    are noticed; the caller restores them.

    Args:
        risk: The risk.
        prove: ``(X, y) ->`` the ways to differentiate from the first that is right, and
            its proof; see :func:`prove`.
        multiply: ``(ways, v) ->`` summed product, loss and divisor over all data; by
            default in the operator's own ways.

    Returns:
        The result of ``prove``; ``None`` for a rank without data.

    Raises:
        NonDeterministicError: If the passes differ, with what differed and where.
        ValueError: If the loss is not finite, or the data does not fit.
    """
    sample: list[Sample] = []
    # of a callable, only additivity over batches is assumed: one batch needs no check
    alone = risk.loss.terms is None and risk.data.num_batches == 1
    verify = not risk.loss.is_trusted and not alone
    # sums are in single precision at least, terms in that of the parameters
    rounding = tolerance(*(p.dtype for p in risk.parameters.tensors))

    def look(X: Any, y: Any, parts: Sequence[Tensor], prediction: Any) -> None:
        if not sample:
            again, _ = gradient_of_batch(risk, X, y)
            is_random = any(differences(parts, again, rounding))
            sample.append(Sample(*few((X, y), partial(_loss, risk)), is_random))
        if verify:
            with torch.no_grad():
                risk.loss.verify(nested.map_tensors(Tensor.detach, prediction), y)

    *slope, loss, share = gradient_over_data(risk, "determinism check", look)
    risk.divisor(loss, share)
    refuse_not_finite(slope, [], risk.parameters.names, "gradient")
    if not any(bool(b.any()) for b in slope):
        risk.check_dependence()
    del slope  # to free its memory
    found: Found | Exception | None = None
    try:
        for part in sample:
            refuse_hidden(risk, part.X, part.y)
            found = prove(part.X, part.y)
    except Exception as error:
        found = error
    loss_again, share_again, num_random = _loss_over_data(risk, sample, found)
    is_other = differ(loss, loss_again, rounding), differ(share, share_again, rounding)
    if any(is_other) or bool(num_random):
        v = probes(risk.parameters)
        ways = found[0] if isinstance(found, tuple) else None
        first, second = (multiply(ways, v) for _ in range(2))
        *product, _, _ = differences(first, second, rounding)
        if any(product) or any(is_other):
            raise NonDeterministicError(_diagnosis(risk, product, *is_other))
    if isinstance(found, Exception):
        raise found  # only now: a lack of determinism would be the better message
    return found


def _loss(risk: Risk, X: Any, y: Any) -> Tensor:
    """Summed loss of a batch."""
    with torch.no_grad():
        prediction = risk.predict(risk.parameters.tensors, X)
        nested.differentiable(prediction)
        return risk.loss.total(prediction, y)


def _loss_over_data(risk: Risk, sample: list[Sample], found: object) -> list[Tensor]:
    """Loss, divisor, and the number of ranks with a random gradient."""
    at, group = risk.parameters, risk.process_group
    loss = torch.zeros((), dtype=torch.promote_types(at.dtype, torch.float32))
    sums = [loss, torch.zeros((), dtype=torch.float64), torch.zeros_like(loss)]
    sums = [t.to(at.device) for t in sums]
    with failing_together(3, group, at.dtype, at.device):
        if isinstance(found, Exception) and group is not None:
            raise found
        for X, y in risk.data.batches("determinism check"):
            with torch.no_grad():
                tally = risk.tally(risk.predict(at.tensors, X), y)
            for total, part in zip(sums[:2], tally, strict=True):
                total += part
        sums[2] += sum(part.is_random for part in sample)
    return all_reduce(sums, group)


def differences(
    first: Sequence[Tensor], second: Sequence[Tensor], rounding: float
) -> list[bool]:
    """Which blocks of the product, and whether loss and divisor, differ."""
    (*a, loss_a, share_a), (*b, loss_b, share_b) = first, second
    # one scale for all blocks: a block may vanish by cancellation between batches
    scale = max(float(t.abs().max()) for t in [*a, *b] if t.numel())
    bound = scale * rounding
    blocks = [bool(((s - t).abs() > bound).any()) for s, t in zip(a, b, strict=True)]
    return [*blocks, differ(loss_a, loss_b, rounding), differ(share_a, share_b)]


def _diagnosis(risk: Risk, product: list[bool], loss: bool, share: bool) -> str:
    """A message: what differs between the passes, in which batch, and the usual cause."""
    names = risk.parameters.names or [str(i) for i in range(len(product))]
    what = [
        "the loss" if loss else "",
        "the divisor of the mean" if share else "",
        "the product" if any(product) else "",
    ]
    blocks = [name for name, d in zip(names, product, strict=True) if d]
    head = (
        f"Two passes over the data differ in {', '.join(w for w in what if w)}"
        + (f" (parameters {', '.join(blocks[:3])}{' …' if blocks[3:] else ''})")
        * bool(blocks)
        + ". "
    )
    return head + _first_difference(risk)


def _first_difference(risk: Risk) -> str:
    """Two further passes, batch by batch: data, then loss, then gradient."""
    passes = [
        [_observe(risk, X, y) for X, y in risk.data.batches("diagnosis")] for _ in range(2)
    ]
    if len(passes[0]) != len(passes[1]):
        return (
            f"The number of batches differs ({len(passes[0])} and {len(passes[1])}). "
            "Make the data the same at each iteration."
        )
    for i, observed in enumerate(zip(*passes, strict=True)):
        for what, a, b in zip(_OBSERVED, *observed, strict=True):
            if a.shape != b.shape or differ(a, b):
                return f"Batch {i} differs in its {what}: {_CAUSES[what]}"
    return (
        "No single batch differs in data, loss or gradient: the second derivative "
        "itself is not reproducible (atomic additions on a GPU? "
        "torch.use_deterministic_algorithms(True))."
    )


_OBSERVED = ("data", "loss", "gradient")
_CAUSES = {
    "data": "the usual cause is shuffling together with drop_last or batch statistics, "
    "or random augmentation. Use a DataLoader with shuffle=False, or a list of batches.",
    "loss": "the usual cause is dropout or another random layer. Call model.eval().",
    "gradient": "the usual cause is a random backward pass, or non-deterministic kernels.",
}


def _observe(risk: Risk, X: Any, y: Any) -> tuple[Tensor, ...]:
    """Fingerprint of the data (order counts), loss, and gradient of one batch."""
    marks = [
        t.double().flatten() @ torch.arange(1, t.numel() + 1, device=t.device).double()
        for t in nested.tensors((X, y))
    ]
    with torch.enable_grad(), risk.parameters.leaves() as params:
        loss = risk.loss.total(risk.predict(params, X), y)
        gradient = torch.autograd.grad(loss, params, allow_unused=True)
    flat = [g.flatten().to(risk.parameters.dtype) for g in gradient if g is not None]
    return torch.stack(marks), loss.detach()[None], torch.cat(flat)
