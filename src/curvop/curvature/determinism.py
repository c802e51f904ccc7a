"""The determinism check: an outside observer that passes over the data twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvop.curvature import nested
from curvop.curvature.dependence import check_dependence
from curvop.curvature.distributed import all_reduce, failing_together
from curvop.curvature.graph import gradient
from curvop.curvature.probing import differ, refuse_not_finite, tolerance
from curvop.curvature.proof import Proof, few, probes, prove, subject

if TYPE_CHECKING:
    from curvop.curvature.base import CurvatureLinearOperator
    from curvop.curvature.differentiation import Differentiation


class NonDeterministicError(RuntimeError):
    """Two passes over the same data gave different results."""


@dataclass(frozen=True)
class Sample:
    """What is found on the first batch.

    Attributes:
        X: Inputs of a few data.
        y: Their targets.
        is_random: Whether the gradient of the batch is another one the second time.
    """

    X: Any
    y: Any
    is_random: bool


def check_deterministic(
    op: CurvatureLinearOperator,
) -> tuple[tuple[Differentiation, ...], Proof]:
    """Pass over the data twice and compare; prove the product on a few data.

    Whatever is random in the data shows in the loss, which the second pass is for. What is
    random in the model shows in the gradient of the first batch, computed twice. Products
    decide where only that differs: a gradient may vanish by cancellation between data, so
    that nothing but rounding is left of it.

    The generators run on from the first pass to the second, so that dropout and
    shuffling show; the caller restores them.

    Args:
        op: The operator.

    Returns:
        The ways to differentiate from the first that is right, and what is known of it.

    Raises:
        NonDeterministicError: If the passes differ, with what differed and where.
        ValueError: If the loss is not finite, or the data does not fit.
    """
    sample: list[Sample] = []
    *slope, loss, share = gradient_over_data(op, sample=sample)
    op._divisor(loss, share)
    refuse_not_finite(slope, [], op._parameters.names, "gradient")
    if not any(bool(b.any()) for b in slope):
        check_dependence(op._parameters, op._data, op._loss, op._process_group)
    del slope  # its memory
    found = _proven(op, sample)
    loss_again, share_again, num_random = _loss_over_data(op, sample, found)
    # summed in single precision at least, but computed in that of the parameters
    rounding = tolerance(*(p.dtype for p in op._parameters.tensors))
    is_other = differ(loss, loss_again, rounding), differ(share, share_again, rounding)
    if any(is_other) or bool(num_random):
        v = probes(op)
        settled = op if isinstance(found, Exception) else op._with(_ways=found[0])
        first, second = (settled._sum_over_all(v)[0] for _ in range(2))
        *product, _, _ = differences(first, second, rounding)
        if any(product) or any(is_other):
            raise NonDeterministicError(_diagnosis(settled, product, *is_other))
    if isinstance(found, Exception):
        raise found  # of a model that is at least deterministic
    return found


def _proven(
    op: CurvatureLinearOperator, sample: list[Sample]
) -> tuple[tuple[Differentiation, ...], Proof] | Exception:
    """The ways that are right on a few data, or why there is none."""
    try:
        for part in sample:
            return prove(op._ways, subject(op, part.X, part.y), probes(op))
    except Exception as error:
        return error
    return op._ways, op._proof  # a rank without data


def gradient_over_data(
    op: CurvatureLinearOperator, *, sample: list[Sample] | None = None
) -> list[Tensor]:
    """Gradient, loss and divisor, summed over all batches and ranks.

    Args:
        op: The operator.
        sample: In a first pass, a list that gets what is found on the first batch. What
            was assumed about the loss is then checked on each batch.
    """
    wide = torch.promote_types(op.dtype, torch.float32)  # sums of half precision
    tensors = op._parameters.tensors
    sums = [torch.zeros_like(p, dtype=wide, requires_grad=False) for p in tensors]
    sums.append(torch.zeros((), dtype=wide, device=op.device))
    sums.append(torch.zeros((), dtype=torch.float64, device=op.device))
    # of a callable only its additivity is assumed: one batch needs no adding
    alone = op._loss.terms is None and op._data.num_batches == 1
    verify = sample is not None and not op._loss.is_trusted and not alone
    size = sum(total.numel() for total in sums)
    rounding = tolerance(*(p.dtype for p in tensors))
    with failing_together(size, op._process_group, op.dtype, op.device):
        for X, y in op._data.batches("determinism check"):
            *parts, prediction = _gradient(op, X, y)
            if sample is not None and not sample:
                *again, _ = _gradient(op, X, y)
                is_random = any(differences(parts, again, rounding))
                sample.append(Sample(*few((X, y), op._loss_of), is_random))
            if verify:
                with torch.no_grad():
                    op._loss.verify(nested.map_tensors(Tensor.detach, prediction), y)
            for total, part in zip(sums, parts, strict=True):
                total += part
    return all_reduce(sums, op._process_group)


def _gradient(op: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Any, ...]:
    """Gradient, loss, share of the divisor and prediction of one batch."""
    with torch.enable_grad(), op._parameters.leaves() as params:
        prediction = op._predict(params, X)
        nested.differentiable(prediction)  # or say what came
        loss = op._loss.total(prediction, y)
        tally = op._tally(prediction, y, loss)
        return *gradient(loss, params, create_graph=False), *tally, prediction


def _loss_over_data(
    op: CurvatureLinearOperator, sample: list[Sample], found: object
) -> list[Tensor]:
    """Loss, divisor, and the number of ranks that have found something random."""
    loss = torch.zeros((), dtype=torch.promote_types(op.dtype, torch.float32))
    sums = [loss, torch.zeros((), dtype=torch.float64), torch.zeros_like(loss)]
    sums = [t.to(op.device) for t in sums]
    with failing_together(3, op._process_group, op.dtype, op.device):
        if isinstance(found, Exception) and op._process_group is not None:
            raise found
        for X, y in op._data.batches("determinism check"):
            with torch.no_grad():
                tally = op._tally(op._predict(op._parameters.tensors, X), y)
            for total, part in zip(sums[:2], tally, strict=True):
                total += part
        sums[2] += sum(part.is_random for part in sample)
    return all_reduce(sums, op._process_group)


def differences(first: list[Tensor], second: list[Tensor], rounding: float) -> list[bool]:
    """Which blocks of the product, and whether loss and divisor, differ."""
    (*a, loss_a, share_a), (*b, loss_b, share_b) = first, second
    # one scale for all blocks: a block may vanish by cancellation between batches
    scale = max(float(t.abs().max()) for t in [*a, *b] if t.numel())
    bound = scale * rounding
    blocks = [bool(((s - t).abs() > bound).any()) for s, t in zip(a, b, strict=True)]
    return [*blocks, differ(loss_a, loss_b, rounding), differ(share_a, share_b)]


def _diagnosis(
    op: CurvatureLinearOperator, product: list[bool], loss: bool, share: bool
) -> str:
    """What differed between the passes, in which batch, and the usual cause."""
    names = op._parameters.names or [str(i) for i in range(len(product))]
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
    return head + _first_difference(op)


def _first_difference(op: CurvatureLinearOperator) -> str:
    """Two further passes, batch by batch: data, then loss, then gradient."""
    passes = [
        [_observe(op, X, y) for X, y in op._data.batches("diagnosis")] for _ in range(2)
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


def _observe(op: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Tensor, ...]:
    """Fingerprint of the data (order counts), loss, and gradient of one batch."""
    marks = [
        t.double().flatten() @ torch.arange(1, t.numel() + 1, device=t.device).double()
        for t in nested.tensors((X, y))
    ]
    with torch.enable_grad(), op._parameters.leaves() as params:
        loss = op._loss.total(op._predict(params, X), y)
        gradient = torch.autograd.grad(loss, params, allow_unused=True)
    flat = [g.flatten().to(op.dtype) for g in gradient if g is not None]
    return torch.stack(marks), loss.detach()[None], torch.cat(flat)
