"""The published form of the inverse as a second opinion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.cases.problem import Problem
from tests.comparing import error, random
from tests.direct import block_tridiagonal as published
from tests.direct.chains import chain, dense, mlp, problem

PROBLEMS = {
    "perceptron": mlp(3, 3, 2, bias=False, loss="cross-entropy"),
    "biases": mlp(3, 3, 2, nn.GELU),
    "many data": mlp(2, 3, 6, nn.Softplus, loss="huber"),
    "layer norm": problem(
        lambda: [nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)], 2, 3
    ),
    "convolution": problem(
        lambda: [nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)], 2, 1, 4
    ),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def right_hand_side(p: Problem, layers: list[published.Layer]) -> list[Tensor]:
    """``(g, 0, 0)`` for each layer."""
    sizes = [layer.Dx.shape for layer in layers]
    parts = random(sum(s[1] for s in sizes)).split([s[1] for s in sizes])
    return [
        torch.cat([g, g.new_zeros(2 * a)])[:, None]
        for g, (a, _) in zip(parts, sizes, strict=True)
    ]


@every_problem
@pytest.mark.parametrize("damping", [1.0, 0.1])
def test_second_opinion(name: str, damping: float) -> None:
    p = PROBLEMS[name]
    layers, Φ = published.layers_of(p)
    diagonal, lower = published.system(layers, Φ, damping)
    b = right_hand_side(p, layers)
    sizes = [layer.Dx.shape[1] for layer in layers]
    g = torch.cat([part[:n, 0] for part, n in zip(b, sizes, strict=True)])
    ours = chain(p).inverse(damping) @ g

    def parameters(blocks: list[Tensor]) -> Tensor:
        return torch.cat([part[:n, 0] for part, n in zip(blocks, sizes, strict=True)])

    A = published.dense(diagonal, lower)
    together = torch.linalg.solve(A, torch.cat(b)).split([len(D) for D in diagonal])
    assert error(ours, parameters(list(together))) <= 1e-10
    assert error(ours, parameters(published.block_elimination(diagonal, lower, b))) <= 1e-8


@every_problem
def test_same_determinant(name: str) -> None:
    """``y`` and ``z`` add pivots of determinant ±1, and as many negative as positive."""
    p = PROBLEMS[name]
    layers, Φ = published.layers_of(p)
    A = published.dense(*published.system(layers, Φ, 0.1))
    inverse = chain(p).inverse(0.1)
    logabsdet = float(torch.linalg.slogdet(A)[1])
    assert abs(inverse.logabsdet() - logabsdet) <= 1e-9 * max(1.0, abs(logabsdet))
    pairs = sum(len(layer.Dx) for layer in layers)
    negative = int((torch.linalg.eigvalsh(A) < 0).sum())
    assert inverse.num_negative() == negative - pairs


@every_problem
def test_the_system_belongs_to_the_hessian(name: str) -> None:
    """Eliminating ``y`` and ``z`` leaves ``H + εI``."""
    p = PROBLEMS[name]
    layers, Φ = published.layers_of(p)
    A = published.dense(*published.system(layers, Φ, 0.1))
    keep = torch.cat(
        [
            torch.tensor([1] * p + [0] * 2 * a)
            for a, p in (layer.Dx.shape for layer in layers)
        ]
    ).bool()
    schur = A[keep][:, keep] - A[keep][:, ~keep] @ torch.linalg.solve(
        A[~keep][:, ~keep], A[~keep][:, keep]
    )
    H = dense(p)
    assert error(schur, H + 0.1 * torch.eye(len(H)).double()) <= 1e-12
