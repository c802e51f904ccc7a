"""What surrounds every pass over the data: set for differentiation, then as found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from curvop.curvature.data import Data
from curvop.curvature.kernels import differentiable_kernels
from curvop.curvature.randomness import preserved


@contextmanager
def surroundings(data: Data) -> Iterator[None]:
    """Kernels that can be differentiated, no inference mode, generators preserved."""
    with (
        preserved(data.device, *data.generators),
        torch.inference_mode(False),
        differentiable_kernels(),
    ):
        yield
