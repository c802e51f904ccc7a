"""How tests compare: largest difference over the largest entry of the truth."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

TOLERANCE = 1e-10  # double precision, three digits better than what is promised


def error(got: object, expected: object) -> float:
    """Relative error; shapes and finiteness must fit, too. Absolute where 0 is true."""
    a, b = as_numpy(got), as_numpy(expected)
    assert a.shape == b.shape
    assert numpy.isfinite(a).all()
    if b.size == 0:
        return 0.0
    scale = float(numpy.abs(b).max())
    return float(numpy.abs(a - b).max()) / (scale or 1.0)


def as_numpy(x: object) -> numpy.ndarray:
    """A tensor or array as an array of double precision."""
    x = x.detach().numpy() if isinstance(x, Tensor) else numpy.asarray(x)
    return x.astype(numpy.promote_types(x.dtype, numpy.float64))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that do not touch the global generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def split(x: Tensor, shapes: tuple[torch.Size, ...], side: str) -> list[Tensor]:
    """A vector or matrix as blocks: ``[*n_i, K]``, or from the left ``[K, *n_i]``."""
    axis = 0 if side == "right" else -1
    parts = x.split([s.numel() for s in shapes], axis)
    if x.ndim == 1:
        return [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]
    K = x.shape[1 - axis] if side == "right" else x.shape[0]
    return [
        p.reshape((*s, K) if side == "right" else (K, *s))
        for p, s in zip(parts, shapes, strict=True)
    ]


def joined(blocks: list[Tensor], shapes: tuple[torch.Size, ...], side: str) -> Tensor:
    """The inverse of :func:`split`; checks the shapes on the way."""
    flat = []
    for b, s in zip(blocks, shapes, strict=True):
        if b.shape == s:
            flat.append(b.reshape(-1))
        elif side == "right":
            assert b.shape[:-1] == s
            flat.append(b.reshape(s.numel(), b.shape[-1]))
        else:
            assert b.shape[1:] == s
            flat.append(b.reshape(b.shape[0], s.numel()))
    return torch.cat(flat, 0 if side == "right" else -1)
