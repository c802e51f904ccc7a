"""Look before you leap: does a model's curvature work, is it right, what will it cost?

What it shows, on images of handwritten digits:

1. the preflight of a convolutional network as it comes out of training, with dropout on and
   batch norm in train mode: not ready, and why;
2. the same network after ``model.eval()``: the whole table;
3. four more models, one of which has a custom function with a wrong second derivative: its
   Hessian by autograd is symmetric, reproducible, raises no error, and is wrong in every
   precision, so that differences of first derivatives are taken;
4. the forecast of what 100 products take, next to what they then took.

It ends in that table. Run it with ``python examples/preflight.py`` where curvop is
installed with its ``examples`` extra.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from curvop import GGNLinearOperator, Preflight, preflight

BATCH_SIZE = 128
PRODUCTS = 100
Batches = list[tuple[Tensor, Tensor]]


class Swish(torch.autograd.Function):
    """``x σ(x)`` that saves memory, and forgets that its derivative has one, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The function."""
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Its derivative, as a constant."""
        (x,) = ctx.saved_tensors
        with torch.no_grad():  # the mistake
            s = x.sigmoid()
            slope = s * (1 + x * (1 - s))
        return g * slope


class CustomSwish(nn.Module):
    """The function as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Call it."""
        return Swish.apply(x)


class Attention(nn.Module):
    """A transformer over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, X: Tensor) -> Tensor:
        """Attend, average over the rows, classify."""
        return self.head(self.layer(X[:, 0]).mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def fully_connected(activation: nn.Module) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 64), activation, nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def load_data() -> Batches:
    digits = load_digits()
    X = torch.from_numpy(digits.images / 16.0).float()[:, None]
    y = torch.from_numpy(digits.target)
    return list(zip(X.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True))


def train(model: nn.Module, loss_func: nn.Module, batches: Batches) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(5):
        for X, y in batches:
            optimizer.zero_grad()
            loss_func(model(X), y).backward()
            optimizer.step()
    optimizer.zero_grad()


def check(model: nn.Module, loss_func: nn.Module, batches: Batches) -> Preflight:
    return preflight(model, loss_func, list(model.parameters()), batches)


def print_cautions(found: Preflight) -> None:
    for caution in found.cautions:
        if caution.severity != "note":
            print(f"   {caution.what}\n      -> {caution.remedy}")


def measured(model: nn.Module, loss_func: nn.Module, batches: Batches) -> float:
    """Seconds of 100 products with the linearised Gauss-Newton matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of falling back: the preflight has told
        G = GGNLinearOperator(model, loss_func, list(model.parameters()), batches)
        v = torch.ones(G.shape[1])
        start = time.perf_counter()
        L = G.linearize()
        for _ in range(PRODUCTS):
            L @ v
        return time.perf_counter() - start


def print_forecasts(rows: dict[str, tuple[Preflight, float]]) -> None:
    print(f"\n4. {PRODUCTS} products with the linearised Gauss-Newton matrix\n")
    print(f"   {'':<26}{'ready':<7}{'Hessian':<13}{'keeps':<10}{'forecast':>9}{'took':>9}")
    for name, (found, seconds) in rows.items():
        forecast = found.forecast("GGN")
        way = found.forecast("Hessian").way
        print(
            f"   {name:<26}{'yes' if found.is_ready else 'no':<7}{way:<13}"
            f"{forecast.form:<10}{forecast.linearized_seconds:>7.2f} s{seconds:>7.2f} s"
        )


def main() -> None:
    """Train, look, print."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the products are tiny: threads would wait for each other
    batches, loss_func = load_data(), nn.CrossEntropyLoss()

    model = convolutional()
    train(model, loss_func, batches)
    found = check(model, loss_func, batches)
    print(f"1. As it comes out of training: ready: {found.is_ready}\n")
    print_cautions(found)

    model.eval()
    found = check(model, loss_func, batches)
    print(f"\n2. After model.eval()\n\n{found}")
    rows = {"convolutional": (found, measured(model, loss_func, batches))}

    print("\n3. Four more models")
    others = {
        "attention": Attention(),
        "swish": fully_connected(nn.SiLU()),
        "swish, custom function": fully_connected(CustomSwish()),
        "layer norm": fully_connected(nn.LayerNorm(64)),
    }
    for name, other in others.items():
        train(other, loss_func, batches)
        other.eval()
        found = check(other, loss_func, batches)
        print(f"\n   {name}: ready: {found.is_ready}")
        print_cautions(found)
        rows[name] = (found, measured(other, loss_func, batches))
    print_forecasts(rows)


if __name__ == "__main__":
    main()
