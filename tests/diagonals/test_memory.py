"""Gradients of data are never held for more data than fit the bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from curvop import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)
from curvop.diagonals import layer_sums, per_datum, second_derivatives
from tests.cases.problem import classes, normal, seeded

N, WIDTH, POSITIONS = 60, 24, 5


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.untyped_storage().nbytes() // t.itemsize)
        return out


class _Scaled(nn.Module):
    """A weight that no layer holds: for each datum it is differentiated alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, X: Tensor) -> Tensor:
        return X @ self.weight.T


@pytest.mark.parametrize("middle", [lambda: nn.Linear(WIDTH, WIDTH), _Scaled])
@pytest.mark.parametrize(
    "cls",
    [GGNDiagonalLinearOperator, EFDiagonalLinearOperator, HessianDiagonalLinearOperator],
)
def test_largest_tensor(cls: Any, middle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 4096
    monkeypatch.setattr(second_derivatives, "NUMBERS", bound)
    monkeypatch.setattr(layer_sums, "NUMBERS", bound)
    monkeypatch.setattr(layer_sums, "PAIRS", bound)
    monkeypatch.setattr(per_datum, "NUMBERS", bound)
    model = seeded(
        lambda: nn.Sequential(middle(), nn.Tanh(), nn.Flatten(), _head()), torch.float64
    )
    X, y = normal(torch.float64, N, POSITIONS, WIDTH), classes(2, N)
    params = list(model.parameters())
    args = (model, nn.CrossEntropyLoss(), params, [(X, y)])
    with Largest() as largest:
        cls(*args, check_deterministic=False, chunk_size=2)
    gradients_of_data = N * WIDTH**2
    activations_of_a_chunk = 2 * X.numel()
    assert largest.numel <= max(2 * bound, activations_of_a_chunk, 8 * WIDTH**2)
    assert largest.numel < gradients_of_data / 2


def _head() -> nn.Module:
    return nn.Linear(POSITIONS * WIDTH, 2)
