"""Seconds and bytes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from curvop.inspection.measuring import peak_bytes_of, seconds_of

CPU = torch.device("cpu")


def test_peak_of_a_chain() -> None:
    """Three tensors of 4000 bytes, never more than two of them at once."""
    x = torch.ones(1000)
    assert peak_bytes_of(lambda: x.exp().sin().cos()) == 8000
    assert peak_bytes_of(lambda: x.exp().sin_().cos_()) == 4000
    assert peak_bytes_of(lambda: x.view(10, 100).T[:3]) == 0
    assert peak_bytes_of(lambda: None) == 0


def test_peak_counts_what_autograd_keeps() -> None:
    """``sin`` keeps its input, ``exp`` its result: all three are alive at the end."""
    x = torch.ones(1000, requires_grad=True)

    def forward() -> Tensor:
        return x.exp().sin().exp()

    assert peak_bytes_of(forward) == 12000

    def backward() -> object:
        return torch.autograd.grad(forward().sum(), x)

    assert peak_bytes_of(backward) >= 12000


def test_peak_of_a_gradient_of_a_network() -> None:
    """Gradients of 2 MB, and little else."""
    model = nn.Linear(500, 1000, bias=False)
    X = torch.randn(2, 500)

    def gradient() -> object:
        return torch.autograd.grad(model(X).sum(), list(model.parameters()))

    assert 4 * 500_000 <= peak_bytes_of(gradient) < 1.1 * 4 * 500_000


def test_peak_is_measured_after_an_error() -> None:
    def fails() -> object:
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        peak_bytes_of(fails)
    assert peak_bytes_of(lambda: torch.ones(10)) == 40


def test_seconds_are_the_least() -> None:
    calls: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        if not calls:
            time.sleep(0.05)  # a first time that loads something
        calls.append(time.perf_counter() - start)

    assert 0 < seconds_of(run, CPU) <= min(calls[1:]) + 1e-3
    assert len(calls) > 2


def test_long_runs_are_not_repeated_often() -> None:
    calls: list[int] = []

    def run() -> None:
        calls.append(1)
        time.sleep(0.04)

    assert seconds_of(run, CPU) >= 0.04
    assert len(calls) == 2
