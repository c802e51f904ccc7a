"""Small networks to train, and their matrices computed without the library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Training:
    """A model, its data in two batches, and full-batch descent."""

    model: nn.Module
    loss_func: nn.Module
    params: list[Tensor]
    X: Tensor
    y: Tensor
    optimizer: torch.optim.Optimizer

    @property
    def data(self):
        cut = [20, 10]
        return list(zip(self.X.split(cut), self.y.split(cut), strict=True))

    @property
    def problem(self):
        """What the monitor takes."""
        return self.model, self.loss_func, self.params, self.data

    def descend(self):
        self.optimizer.zero_grad()
        self.loss_func(self.model(self.X), self.y).backward()
        self.optimizer.step()

    def gradient(self) -> Tensor:
        loss = self.loss_func(self.model(self.X), self.y)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, self.params)])

    def hessian(self) -> Tensor:
        """Row by row, by differentiating twice."""
        loss = self.loss_func(self.model(self.X), self.y)
        grads = torch.autograd.grad(loss, self.params, create_graph=True)
        g = torch.cat([part.reshape(-1) for part in grads])
        rows = [torch.autograd.grad(x, self.params, retain_graph=True) for x in g]
        return torch.stack([torch.cat([p.reshape(-1) for p in row]) for row in rows])


def training(make=torch.optim.SGD, *, seed=0, **options) -> Training:
    """4 -> 5 -> 3 with tanh, in double precision, 30 examples."""
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype))
    X = torch.randn(30, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (30,), generator=draw)
    params = list(model.parameters())
    optimizer = make(params, **({"lr": 0.1} | options))
    return Training(model, nn.CrossEntropyLoss(), params, X, y, optimizer)
