"""Whether a zero matrix is right, or the model is detached from its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvop.autograd import depends
from curvop.operators import differ, probe
from curvop.risk import nested
from curvop.risk.context import preserved
from curvop.risk.data import Data
from curvop.risk.distributed import all_reduce, failing_together
from curvop.risk.parameters import Parameters, constant

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from curvop.risk.losses import Loss


UNUSED = (
    "The model uses none of the given parameters (or detaches its prediction, or computes "
    "it under no_grad): nothing to differentiate. Pass the tensors that the model is "
    "computed from."
)


def in_graph(outputs: tuple[Tensor, ...], at: Parameters) -> tuple[Tensor, ...]:
    """The outputs; those of a closure are required to depend on some parameter.

    Parameters of a module are known to belong to it; if it does not use them, the matrix
    is zero.

    Raises:
        ValueError: If a closure uses none of the parameters.
    """
    if not at.functional and not any(o.requires_grad for o in outputs):
        raise ValueError(UNUSED)
    return outputs


def check_dependence(
    at: Parameters,
    data: Data,
    loss: Loss | None = None,
    group: ProcessGroup | None = None,
) -> None:
    """Refuse a model that is detached from its parameters, or a closure over others.

    Called when a gradient or product is zero, as it passes over the data up to the first
    batch that depends on a parameter. If there is none and the prediction does not change
    with the parameters either, the matrix is zero; if it does change, it has been detached.

    Args:
        at: The parameters.
        data: The data.
        loss: If it may depend on parameters other than through the prediction.
        group: Ranks that share the data.

    Raises:
        ValueError: If no batch depends on any, though the model uses them.
    """
    counts = torch.zeros(2, dtype=torch.float64, device=at.device)
    with failing_together(2, group, counts.dtype, at.device):
        for X, y in data.batches("are parameters used?"):
            if _depends(at, X, y, loss):
                counts[0] += 1
                break
            if not at.functional or _changes(at, X):
                counts[1] += 1
    ((used, cut_off),) = all_reduce([counts], group)
    if bool(cut_off) and not bool(used):
        raise ValueError(UNUSED)


def _depends(at: Parameters, X: Any, y: Any, loss: Loss | None) -> bool:
    """Whether autograd finds a parameter."""
    with torch.enable_grad(), at.leaves() as params:
        prediction = at.model(params, X)
        outputs = nested.differentiable(prediction)
        if loss is not None and at.read:
            outputs = (*outputs, loss.total(prediction, y))
        return depends(outputs, params)


def _changes(at: Parameters, X: Any) -> bool:
    """Whether the prediction changes with the parameters, dropout being the same."""
    values = [constant(p) for p in at.tensors]
    others = [p + u for p, u in zip(values, probe(values), strict=True)]

    def predicted(params: list[Tensor]) -> list[Tensor]:
        with torch.no_grad(), preserved(at.device):
            return [o.flatten() for o in nested.differentiable(at.model(params, X))]

    before, after = torch.cat(predicted(values)), torch.cat(predicted(others))
    return before.numel() > 0 and differ(before, after)
