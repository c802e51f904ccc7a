"""Whether a zero matrix is that of a model, or of one that is cut off its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvop.curvature import nested
from curvop.curvature.data import Data
from curvop.curvature.distributed import all_reduce, failing_together
from curvop.curvature.graph import UNUSED, depends
from curvop.curvature.parameters import Parameters, constant
from curvop.curvature.probing import differ, probe
from curvop.curvature.randomness import preserved

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from curvop.curvature.losses import Loss


def check_dependence(
    at: Parameters,
    data: Data,
    loss: Loss | None = None,
    group: ProcessGroup | None = None,
) -> None:
    """Refuse a model that is cut off its parameters, or a closure over others.

    Costs the passes up to the first batch that depends on a parameter: meant for when a
    gradient or product is zero. If there is none, the matrix is zero where the prediction
    does not change with the parameters either; where it does, it has been detached.

    Args:
        at: The parameters.
        data: The data.
        loss: Where it may depend on parameters by itself.
        group: Ranks that share the data.

    Raises:
        ValueError: If no batch depends on any, and not for lack of use.
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
    """Whether autograd knows of a parameter."""
    with torch.enable_grad(), at.leaves() as params:
        prediction = at.model(params, X)
        outputs = nested.differentiable(prediction)
        if loss is not None and at.read:
            outputs = (*outputs, loss.total(prediction, y))
        return depends(outputs, params)


def _changes(at: Parameters, X: Any) -> bool:
    """Whether the prediction is another one for other parameters, the same dropout."""
    values = [constant(p) for p in at.tensors]
    others = [p + u for p, u in zip(values, probe(values), strict=True)]

    def predicted(params: list[Tensor]) -> list[Tensor]:
        with torch.no_grad(), preserved(at.device):
            return [o.flatten() for o in nested.differentiable(at.model(params, X))]

    before, after = torch.cat(predicted(values)), torch.cat(predicted(others))
    return before.numel() > 0 and differ(before, after)
