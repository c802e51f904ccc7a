"""Probes: fixed random vectors, and when two results count as the same."""

from __future__ import annotations

import torch
from torch import Tensor

from curvop.operators.layout import Blocks


def probe(blocks: Blocks) -> Blocks:
    """A fixed random vector in the shape of ``blocks``; touches no global generator.

    Uniform with variance 1, in single precision: normal ones in double precision take half
    as long as a gradient of a small network.
    """
    generator = torch.Generator().manual_seed(2147483647)
    out = []
    for b in blocks:
        uniform = torch.rand(b.shape, generator=generator, dtype=torch.float32)
        out.append(uniform.sub_(0.5).mul_(12**0.5).to(b))
    return out


def tolerance(*dtypes: torch.dtype) -> float:
    """Relative difference that rounding to one of these types can make."""
    return max(float(torch.finfo(dtype).eps ** 0.5) for dtype in dtypes) / 4


def differ(a: Tensor, b: Tensor, rounding: float | None = None) -> bool:
    """Whether two results differ by more than rounding, by default that of their type."""
    scale = torch.maximum(a.abs().max(), b.abs().max())
    rounding = tolerance(a.dtype) if rounding is None else rounding
    return bool((a - b).abs().max() > rounding * scale)
