"""The context of every pass over the data: settings of torch, restored afterwards."""

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

    Torch's warning that vmap has no rule for an op and loops is ignored: the user could not
    do anything about it.
    """
    with (
        warnings.catch_warnings(),
        preserved(data.device, *data.generators),
        torch.inference_mode(False),
        differentiable_kernels(),
    ):
        warnings.filterwarnings("ignore", "There is a performance drop because")
        yield
