"""What the tests of this folder share: a small network, and the truth about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


def flat(blocks: Iterable[Tensor]) -> Tensor:
    return torch.cat([b.reshape(-1) for b in blocks])


def dense_hessian(func: Callable[[], Tensor], params: Sequence[Tensor]) -> Tensor:
    """By plain double backward, row by row: right through norm layers."""
    g = torch.autograd.grad(func(), params, create_graph=True)
    rows = [torch.autograd.grad(g_i, params, retain_graph=True) for g_i in flat(g)]
    return torch.stack([flat(row) for row in rows])


def dense_ggn(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], X: Tensor, y: Tensor
) -> Tensor:
    """``Jᵀ ∇²ℓ J`` with the Jacobian row by row."""
    params = [p for p in model.parameters() if p.requires_grad]
    prediction = model(X)

    def row(f_i: Tensor) -> Tensor:
        grads = torch.autograd.grad(
            f_i, params, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return flat(grads)

    def loss(f: Tensor) -> Tensor:
        return loss_fn(f.reshape(prediction.shape), y)

    f = prediction.reshape(-1)
    J = torch.stack([row(f_i) for f_i in f])
    return J.T @ torch.autograd.functional.hessian(loss, f.detach()) @ J


def classifier() -> tuple[nn.Module, Tensor, Tensor]:
    """A network with a norm layer in double precision, with its data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3))
    return (
        model.double(),
        torch.randn(6, 5, dtype=torch.float64),
        torch.tensor([0, 2, 1, 1, 0, 2]),
    )


def randn_like(tensors: Iterable[Tensor], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]


def rademacher_like(tensors: Iterable[Tensor], seed: int = 0) -> list[Tensor]:
    return [v.sign() for v in randn_like(tensors, seed)]


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
