"""The source of randomness: the user's generator, or a fresh one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator


def source(
    generator: Any = None, *, seed: int | None = None, device: torch.device | str = "cpu"
) -> Generator:
    """The generator, or a fresh one; the global ones are not used.

    Args:
        generator: What the user passed.
        seed: Seed of a fresh one; by default from the operating system.
        device: Device of a fresh one.

    Raises:
        TypeError: If it is not a generator.

    >>> source(seed=3).initial_seed()
    3
    """
    if generator is None:
        generator = Generator(device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
    if not isinstance(generator, Generator):
        raise TypeError(
            f"Expected a torch.Generator, got {type(generator).__name__}. For a seed: "
            "torch.Generator().manual_seed(seed)."
        )
    return generator
