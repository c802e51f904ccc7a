"""The context of every pass over the data: differentiable kernels, generators preserved."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

from curvop.autograd import differentiable_kernels
from curvop.risk.data import Data


@contextmanager
def context(data: Data) -> Iterator[None]:
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


@contextmanager
def preserved(device: torch.device, *generators: object) -> Iterator[None]:
    """Restore all global generators, and those given, on exit.

    A pass over a ``DataLoader`` draws from the global generator even without shuffling,
    data augmentation draws from Python's or NumPy's, dropout from the device's.

    Args:
        device: Its generator is restored, too.
        *generators: Further generators; other objects are skipped.
    """
    own = [g for g in generators if isinstance(g, torch.Generator)]
    states = [(g, g.get_state()) for g in own]
    cpu = torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    python, np = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)
        random.setstate(python)
        numpy.random.set_state(np)
        for generator, state in states:
            generator.set_state(state)
