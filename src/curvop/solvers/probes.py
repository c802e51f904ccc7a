"""Random vectors to multiply a matrix with."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from curvop.operators import LinearOperator


def checked(generator: Generator | None) -> Generator:
    """The generator, or a fresh one; the global one is left alone.

    Raises:
        TypeError: If it is of another kind.
    """
    if generator is None:
        generator = Generator()
        generator.seed()
    elif not isinstance(generator, Generator):
        raise TypeError(
            f"Expected a torch.Generator, got {type(generator).__name__}. For a seed: "
            "torch.Generator().manual_seed(seed)."
        )
    return generator


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
