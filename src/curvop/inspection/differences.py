"""Directional derivatives by finite differences, where they converge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvop.curvature.randomness import preserved

CONSISTENT = 1e-5  # relative difference of two steps from which on they count as one
NUM_STEPS = 4  # each a tenth of the one before

Evaluate = Callable[[], Tensor]


@dataclass(frozen=True)
class Differences:
    """A directional derivative.

    Attributes:
        value: The derivative, flat.
        error: Norm of what it may be off by.
    """

    value: Tensor
    error: float


def converged(evaluate: Evaluate, at: Sequence[Tensor], v: Tensor) -> Differences | None:
    """The derivative along ``v`` by central differences, if two steps agree.

    They do not where a kink or a jump is near, or the function is not computed in this
    precision throughout. At a kink itself they agree on the mean of both sides, but what
    the function bends by does not shrink with the step.
    """
    length = float(v.norm())
    start = [t.detach().clone() for t in at]
    centre = _moved(evaluate, at, start, v, 0.0)
    if length == 0:
        return Differences(torch.zeros_like(centre), 0.0)
    size = max(1.0, float(flat(start).norm()))
    eps = torch.finfo(v.dtype).eps
    before, bend_before = None, 0.0
    try:
        for k in range(NUM_STEPS):
            h = eps ** (1 / 3) * size / length * 10.0**-k
            plus, minus = (_moved(evaluate, at, start, v, s) for s in (h, -h))
            now = (plus - minus) / (2 * h)
            bend = float((plus - 2 * centre + minus).norm()) / (2 * h)
            noise = 1e2 * eps * float(centre.norm()) / h  # when all digits cancel
            if before is not None and bend <= max(bend_before / 2, noise):
                bound = max(CONSISTENT * float(now.norm()), noise)
                if float((now - before).norm()) <= bound:
                    return Differences(before, bound)  # the larger step rounds less
            before, bend_before = now, bend
        return None
    finally:
        _put(at, start)


def _moved(
    evaluate: Evaluate,
    at: Sequence[Tensor],
    start: Sequence[Tensor],
    v: Tensor,
    step: float,
) -> Tensor:
    parts = v.split([t.numel() for t in start])
    _put(at, [t + step * d.view_as(t) for t, d in zip(start, parts, strict=True)])
    with preserved(at[0].device), _HeldPadding(at, start):  # one dropout for both sides
        return evaluate().detach()


def _put(at: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for t, value in zip(at, values, strict=True):
            t.copy_(value)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


class _HeldPadding(TorchFunctionMode):
    """The padding row of an embedding does not move: it is a constant to autograd.

    Args:
        at: Tensors that are moved.
        start: Their values before.
    """

    def __init__(self, at: Sequence[Tensor], start: Sequence[Tensor]) -> None:
        super().__init__()
        self._start = {id(t): s for t, s in zip(at, start, strict=True)}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is not F.embedding or kwargs.get("padding_idx") is None:
            return out
        tokens, weight = args
        row = kwargs["padding_idx"] % len(weight)
        held = self._start.get(id(weight), weight)[row]
        return torch.where((tokens == row)[..., None], held, out)
