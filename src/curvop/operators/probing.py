"""Probes: fixed random vectors, and whether two results agree up to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def norms(blocks: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of each block, in double precision."""
    return torch.stack(
        [torch.linalg.vector_norm(b.detach(), dtype=torch.float64) for b in blocks]
    )


def norm(blocks: Sequence[Tensor]) -> float:
    """Euclidean norm of all blocks together, also where squares under- or overflow."""
    length = float(norms(blocks).norm())
    if length and math.isfinite(length):
        return length
    largest = max((float(b.detach().abs().max()) for b in blocks if b.numel()), default=0)
    if not 0 < largest < math.inf:
        return length
    return largest * float(norms([b.detach().double() / largest for b in blocks]).norm())


def tolerance(*dtypes: torch.dtype) -> float:
    """Relative difference that rounding to one of these types may cause."""
    return max(float(torch.finfo(dtype).eps ** 0.5) for dtype in dtypes) / 4


def differ(a: Tensor, b: Tensor, rounding: float | None = None) -> bool:
    """Whether two results differ by more than rounding (by default, to their type)."""
    if not a.numel():
        return False
    scale = torch.maximum(a.abs().max(), b.abs().max())
    rounding = tolerance(a.dtype) if rounding is None else rounding
    return bool((a - b).abs().max() > rounding * scale)


def refuse_not_finite(
    product: Blocks, V: Blocks, names: Sequence[str] | None, what: str = "product"
) -> None:
    """Refuse a product with NaN or infinite entries, where the vector had none.

    Raises:
        ValueError: If there is one, with the parameter that it belongs to.
    """
    bad = not_finite(product)
    if bad is None or not_finite(V) is not None:
        return
    where = f"block {bad}" if names is None else f"parameter {names[bad]!r}"
    raise ValueError(
        f"The {what} is not finite in {where}: a derivative does not exist there, or "
        "overflows. Look for the square root, power, norm or logarithm of zero."
    )


def not_finite(blocks: Blocks) -> int | None:
    """The first block with an entry that is not finite."""
    return next((i for i, b in enumerate(blocks) if not bool(b.isfinite().all())), None)
