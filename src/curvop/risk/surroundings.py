"""What surrounds every pass over the data: set for differentiation, then as found."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from curvop.autograd import differentiable_kernels
from curvop.risk.data import Data
from curvop.risk.randomness import preserved


@contextmanager
def surroundings(data: Data) -> Iterator[None]:
    """Kernels that can be differentiated, no inference mode, generators preserved.

    Where vmap has no rule for an op, torch loops and warns of its own speed: nothing that
    the user of a loss could mend.
    """
    with (
        warnings.catch_warnings(),
        preserved(data.device, *data.generators),
        torch.inference_mode(False),
        differentiable_kernels(),
    ):
        warnings.filterwarnings("ignore", "There is a performance drop because")
        yield
