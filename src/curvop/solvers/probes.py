"""Random vectors to multiply a matrix with."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from curvop.operators import LinearOperator


def signs(K: int, A: LinearOperator, generator: Generator) -> Tensor:
    """``K`` rows of ``±1`` over the domain of ``A``."""
    shape, device = (K, A.shape[1]), generator.device
    bits = torch.randint(0, 2, shape, generator=generator, device=device)
    return (bits * 2 - 1).to(A.device, A.dtype)


def normal(K: int, A: LinearOperator, generator: Generator) -> Tensor:
    """``K`` rows of standard normal numbers over the domain of ``A``."""
    shape, device = (K, A.shape[1]), generator.device
    draw = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    return draw.to(A.device, A.dtype)
