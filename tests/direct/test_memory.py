"""Memory: linear in depth, predicted before it is taken, refused beyond a limit."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from curvop import ChainHessianLinearOperator
from tests.comparing import random
from tests.direct.chains import chain, mlp, problem


def test_linear_in_depth() -> None:
    nbytes = [chain(mlp(L, 6, 3)).inverse(0.1).nbytes() for L in (8, 16, 32)]
    assert nbytes[1] <= 2.3 * nbytes[0]
    assert nbytes[2] <= 2.3 * nbytes[1]


@pytest.mark.parametrize("w", [64, 256])
def test_wide_and_one_datum(w: int) -> None:
    A = chain(mlp(8, w, 1, bias=True, loss="cross-entropy"))
    inverse = A.inverse(0.1)
    assert inverse.nbytes() <= 10e6
    b = random(A.shape[0])
    assert float((A @ (inverse @ b) + 0.1 * (inverse @ b) - b).norm() / b.norm()) <= 1e-9


def test_deep() -> None:
    A = chain(mlp(200, 3, 1))
    b = random(A.shape[0])
    x = A.inverse(0.1) @ b
    assert float((A @ x + 0.1 * x - b).norm() / b.norm()) <= 1e-9


@pytest.mark.parametrize("modules", ["linear", "convolution"])
def test_refused_with_a_batch_that_fits(modules: str) -> None:
    build = {
        "linear": lambda: [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)],
        "convolution": lambda: [nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(21, 2)],
    }[modules]
    shape = (8,) if modules == "linear" else (1, 8)
    p = problem(build, 64, *shape)
    limit = 400_000
    with pytest.raises(ValueError, match="more than the memory limit") as caught:
        chain(p, memory_limit=limit)
    message = str(caught.value)
    assert "minres" in message
    assert "dense" in message  # n·w is larger than the number of parameters
    fits = int(re.search(r"A batch of (\d+) would fit", message)[1])
    assert 1 <= fits < 64

    def smaller(n: int) -> ChainHessianLinearOperator:
        return ChainHessianLinearOperator(
            p.model, p.loss, p.X[:n], p.y[:n], memory_limit=limit
        )

    assert smaller(fits).inverse(0.1).nbytes() <= limit
    with pytest.raises(ValueError, match="more than the memory limit"):
        smaller(fits + 1)


def test_nothing_fits() -> None:
    with pytest.raises(ValueError, match="Not even a batch of 1"):
        chain(mlp(2, 8, 3), memory_limit=1000)


def test_no_hint_at_dense_where_it_would_not_help() -> None:
    with pytest.raises(ValueError, match="minres") as caught:
        chain(mlp(20, 8, 4), memory_limit=1000)
    assert "dense" not in str(caught.value)


def test_delayed_pivots_count_against_the_limit() -> None:
    p = mlp(8, 16, 4)
    A = chain(p)
    plain, delayed = A.inverse(1.0).nbytes(), A.inverse(1e-6).nbytes()
    assert delayed > 1.5 * plain
    # the prediction for the batch passes, what this damping delays does not
    tight = chain(p, memory_limit=int(1.45 * plain))
    tight.inverse(1.0)
    with pytest.raises(ValueError, match="larger damping"):
        tight.inverse(1e-6)


def test_refused_before_anything_is_allocated() -> None:
    """The dense derivatives of this layer alone would be terabytes."""
    model = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3)).double()
    X = torch.zeros(64, 1, 32, 32).double()
    y = torch.zeros(64, 64, 30, 30).double()
    with pytest.raises(ValueError, match="GB"):
        ChainHessianLinearOperator(model, nn.MSELoss(), X, y, memory_limit=10**9)
