"""The empirical risk itself, and its gradient, over all data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from curvop.autograd import gradient
from curvop.risk import nested
from curvop.risk.distributed import all_reduce, failing_together
from curvop.risk.reduction import total_divisor
from curvop.risk.risk import Risk

# (X, y, what the batch adds to gradient, loss and divisor, prediction)
Look = Callable[[Any, Any, Sequence[Tensor], Any], None]


def loss_and_gradient(risk: Risk) -> tuple[float, Tensor]:
    """The loss over all data, and its gradient ``[N]``, at the present parameters.

    They may be infinite or ``nan``, as when training diverges.
    """
    with risk.context():
        *blocks, loss, share = gradient_over_data(risk, "gradient")
        Z = total_divisor(risk.loss.reduction, share)
        slope = torch.cat([b.reshape(-1) for b in blocks]) / Z
    return float(loss / Z), slope.to(risk.parameters.dtype)


def gradient_over_data(risk: Risk, what: str, look: Look | None = None) -> list[Tensor]:
    """Gradient, loss and divisor, summed over all batches and ranks.

    Args:
        risk: The risk.
        what: Label of the progress bar.
        look: Called with each batch and its results.
    """
    at, group = risk.parameters, risk.process_group
    wide = torch.promote_types(at.dtype, torch.float32)  # sums of half precision
    sums = [torch.zeros_like(p, dtype=wide, requires_grad=False) for p in at.tensors]
    sums.append(torch.zeros((), dtype=wide, device=at.device))
    sums.append(torch.zeros((), dtype=torch.float64, device=at.device))
    size = sum(total.numel() for total in sums)
    with failing_together(size, group, at.dtype, at.device):
        for X, y in risk.data.batches(what):
            parts, prediction = gradient_of_batch(risk, X, y)
            if look is not None:
                look(X, y, parts, prediction)
            for total, part in zip(sums, parts, strict=True):
                total += part
    return all_reduce(sums, group)


def gradient_of_batch(risk: Risk, X: Any, y: Any) -> tuple[list[Tensor], Any]:
    """Gradient, summed loss and share of the divisor of one batch; its prediction."""
    with torch.enable_grad(), risk.parameters.leaves() as params:
        prediction = risk.predict(params, X)
        nested.differentiable(prediction)  # raises if there is no tensor
        loss = risk.loss.total(prediction, y)
        tally = risk.tally(prediction, y, loss)
        return [*gradient(loss, params, create_graph=False), *tally], prediction
