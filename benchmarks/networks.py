"""The networks that every contestant multiplies with, on synthetic data of real sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Workload:
    """A model with its loss and mini-batches."""

    name: str
    model: nn.Module
    loss_func: nn.Module
    data: Batches

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.params)


def _cut(X: Tensor, y: Tensor, size: int) -> Batches:
    return list(zip(X.split(size), y.split(size), strict=True))


def mlp(batch_size: int = 256, num_data: int = 2048) -> Workload:
    """784-512-512-10 with ReLU, cross-entropy."""
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    X, y = torch.randn(num_data, 784), torch.randint(0, 10, (num_data,))
    return Workload(
        f"MLP, batches of {batch_size}",
        model,
        nn.CrossEntropyLoss(),
        _cut(X, y, batch_size),
    )


def deep_narrow(depth: int = 20, width: int = 32, num_data: int = 1024) -> Workload:
    """Twenty tanh layers of 32 units: Python overhead dominates."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    X, y = torch.randn(num_data, width), torch.randint(0, 10, (num_data,))
    return Workload("deep narrow tanh", model, nn.CrossEntropyLoss(), _cut(X, y, 32))


def cnn(norm: bool, num_data: int = 128) -> Workload:
    """Four convolutions on 32×32 images, with GroupNorm or without a norm."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        return [conv, *([nn.GroupNorm(4, outputs)] if norm else []), nn.ReLU()]

    model = nn.Sequential(
        *block(3, 16, 1),
        *block(16, 32, 2),
        *block(32, 32, 1),
        *block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    X, y = torch.randn(num_data, 3, 32, 32), torch.randint(0, 10, (num_data,))
    name = "CNN with GroupNorm" if norm else "CNN without norm"
    return Workload(name, model, nn.CrossEntropyLoss(), _cut(X, y, 32))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            a.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for a in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A small decoder with a tied head; predicts ``[B, vocabulary, T]``."""

    def __init__(
        self, vocabulary: int = 256, width: int = 128, depth: int = 4, length: int = 64
    ) -> None:
        super().__init__()
        self.token, self.place = (
            nn.Embedding(vocabulary, width),
            nn.Embedding(length, width),
        )
        self.blocks = nn.ModuleList(_Block(width, 4) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


def gpt(num_data: int = 32) -> Workload:
    """Four layers of width 128, 64 tokens, tied head."""
    ids = torch.randint(0, 256, (num_data, 65))
    data = _cut(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), 8)
    return Workload("small GPT", GPT(), nn.CrossEntropyLoss(), data)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mlp": mlp,
    "mlp32": lambda: mlp(32),
    "deep": deep_narrow,
    "cnn": lambda: cnn(norm=False),
    "cnn_gn": lambda: cnn(norm=True),
    "gpt": gpt,
}
