"""Models that write to the output of a layer in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from curvop import GGNLinearOperator, HessianLinearOperator
from tests.cases.problem import seeded
from tests.comparing import error, random


def model(inplace: bool) -> nn.Module:
    def layers() -> nn.Module:
        return nn.Sequential(
            nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(inplace), nn.Linear(4, 2)
        )

    return seeded(layers, torch.float64)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3)], ids=["vectors", "sequences"])
@pytest.mark.parametrize("kind", [HessianLinearOperator, GGNLinearOperator])
@pytest.mark.parametrize("way", ["func", "backpack"])
def test_in_place_activations(kind: Any, way: Any, shape: tuple[int, ...]) -> None:
    """Of sequences ``F.linear`` returns a view, and writing to it hides its gradient."""
    X, y = random(*shape), random(*shape[:-1], 2, seed=1)
    products = []
    for inplace in (False, True):
        network = model(inplace)
        args = (network, nn.MSELoss(), list(network.parameters()), [(X, y)])
        A = kind(*args, differentiation=way)
        v = random(A.shape[1], seed=2)
        products += [A @ v, A.linearize() @ v]
    assert all(error(Av, products[0]) <= 1e-10 for Av in products)
