"""The memory that an inverse will take, predicted from the shapes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from curvop.direct.newton_system import is_structured
from curvop.direct.sequential import Layer
from curvop.direct.stages import ParametricStage

_BYTES = 8  # double precision


def check_memory(layers: Sequence[Layer], Z: Sequence[Tensor], limit: int) -> None:
    """Refuse a batch whose factors would not fit.

    Args:
        layers: From the first that has parameters on.
        Z: Their inputs, and the prediction.
        limit: Bytes.

    Raises:
        ValueError: If the prediction exceeds the limit.
    """
    n = len(Z[0])

    def needed(batch: int) -> int:
        return _needed(layers, [z.numel() * batch // n for z in Z])

    if needed(n) <= limit:
        return
    P = sum(layer.size for layer in layers)
    width = max(z.numel() for z in Z) // n
    fits = _largest(needed, n, limit)
    mend = f"A batch of {fits} would fit" if fits else "Not even a batch of 1 would fit"
    others = "use an iterative solver such as minres"
    if n * width >= P:
        others += f", or the dense {P} x {P} matrix: n·w = {n * width} is not below P"
    raise ValueError(
        f"The factors would take {_show(needed(n))} for this batch of {n}, more than the "
        f"memory limit of {_show(limit)}. {mend}; or {others}."
    )


def check_growth(nbytes: int, stage: ParametricStage, num_delayed: int, limit: int) -> None:
    """Refuse a pivot that delayed variables have made too large.

    Args:
        nbytes: Bytes that the factors take so far.
        stage: The stage to be eliminated.
        num_delayed: Number of delayed variables that join it.
        limit: Bytes.

    Raises:
        ValueError: If the factors would exceed the limit.
    """
    size = stage.num_coordinates + num_delayed
    nbytes += _BYTES * size * (size + stage.num_inputs)
    if nbytes > limit:
        raise ValueError(
            f"The factors take more than {_show(nbytes)} with this damping, because pivots "
            f"are delayed up to {stage.name}; the memory limit is {_show(limit)}. Choose a "
            "larger damping or a smaller batch, or use an iterative solver such as minres."
        )


def _needed(layers: Sequence[Layer], sizes: Sequence[int]) -> int:
    """Factors and derivatives of all stages, and the cost of the largest state.

    The prediction assumes that nothing is delayed.
    """
    kept = 0
    for i, layer in enumerate(layers):
        a_in, a_out, p = sizes[i] if i else 0, sizes[i + 1], layer.size
        if not is_structured(layer):
            kept += a_out * (a_in + p) + (a_in + p) ** 2 + p * (p + a_in)
        elif isinstance(layer.module, nn.Linear):
            m = layer.module.out_features
            seen = min(a_out // m * m, p)  # r·m
            kept += p + seen * (seen + a_in)
        else:
            kept += 2 * a_in
    return _BYTES * (kept + 4 * max(sizes[1:]) ** 2)


def _largest(needed: Callable[[int], int], n: int, limit: int) -> int:
    """The largest batch below ``n`` that fits, 0 if none does."""
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= limit else (low, middle)
    return low


def physical_memory(device: torch.device) -> int:
    """All memory of the device, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _show(nbytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"
