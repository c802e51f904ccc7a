"""The networks that every contender multiplies with, on synthetic data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Workload:
    """A model with its loss and mini-batches."""

    name: str
    model: nn.Module
    data: Batches
    loss_func: nn.CrossEntropyLoss
    columns: tuple[int, ...] = (1, 8, 32)

    @property
    def params(self) -> list[nn.Parameter]:
        """Each once, tied ones too."""
        return list(self.model.parameters())

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.params)

    @property
    def num_data(self) -> int:
        return sum(len(X) for X, _ in self.data)

    @property
    def num_terms(self) -> int:
        """What the mean over all data divides by."""
        return sum(y.numel() for _, y in self.data)

    def terms(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss before reduction, one entry per target."""
        return F.cross_entropy(prediction, y, reduction="none").flatten()

    def gradient(self) -> None:
        """One gradient over all batches: the unit of cost."""
        for X, y in self.data:
            torch.autograd.grad(self.loss_func(self.model(X), y), self.params)

    def blocks(self, v: Tensor) -> list[Tensor]:
        """A vector ``[P]`` in the shapes of the parameters."""
        parts = v.split([p.numel() for p in self.params])
        return [v.view_as(p) for v, p in zip(parts, self.params, strict=True)]

    def to(self, device: torch.device, dtype: torch.dtype) -> Workload:
        """The same workload elsewhere; token ids and labels stay integers."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else None)

        model = self.model.to(device, dtype)
        return replace(self, model=model, data=[(move(X), move(y)) for X, y in self.data])


def _workload(
    name: str, model: nn.Module, X: Tensor, y: Tensor, batch_size: int, **fields: object
) -> Workload:
    data = list(zip(X.split(batch_size), y.split(batch_size), strict=True))
    return Workload(name, model, data, nn.CrossEntropyLoss(), **fields)


def mlp(name: str, batch_size: int, num_data: int = 512) -> Workload:
    """784-512-512-10 with ReLU."""
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    X, y = torch.randn(num_data, 784), torch.randint(0, 10, (num_data,))
    return _workload(name, model, X, y, batch_size)


def deep_narrow(name: str, depth: int = 20, width: int = 32) -> Workload:
    """Twenty tanh layers of 32 units in batches of 32: Python overhead dominates."""
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    X, y = torch.randn(512, width), torch.randint(0, 10, (512,))
    return _workload(name, model, X, y, 32)


def cnn(name: str, norm: bool) -> Workload:
    """Four convolutions on 32×32 images, with GroupNorm or without a norm."""
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(
        pairwise([3, 16, 32, 32, 64]), [1, 2, 1, 2], strict=True
    ):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1))
        layers += [nn.GroupNorm(4, outputs), nn.ReLU()] if norm else [nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    X, y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    return _workload(name, nn.Sequential(*layers, *head), X, y, 32)


class _Attention(nn.Module):
    """A transformer's block: causal attention, then two layers."""

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
    """A decoder with a tied head; predicts ``[B, vocabulary, T]``."""

    def __init__(
        self, vocabulary: int, width: int, depth: int, heads: int, length: int
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Attention(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)  # otherwise the softmax is saturated

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


def gpt(
    name: str,
    *,
    vocabulary: int = 256,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    length: int = 64,
    num_data: int = 8,
    batch_size: int = 8,
    **fields: object,
) -> Workload:
    """By default four layers of width 128, 64 tokens."""
    model = GPT(vocabulary, width, depth, heads, length)
    ids = torch.randint(0, vocabulary, (num_data, length + 1))
    X, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return _workload(name, model, X, y, batch_size, **fields)


class _Residual(nn.Module):
    """A basic block (two 3×3 convolutions), or a bottleneck (1×1, 3×3, 1×1)."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        # channels in and out, kernel, stride of each convolution
        plan = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            plan = [
                (inputs, width, 1, 1),
                (width, width, 3, stride),
                (width, outputs, 1, 1),
            ]
        layers: list[nn.Module] = []
        for i, o, kernel, s in plan:
            layers += [self._conv(i, o, kernel, s), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        keeps = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if keeps else self._conv(inputs, outputs, 1, stride)

    @staticmethod
    def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet(
    name: str, depths: list[int], *, bottleneck: bool, size: int, num_data: int, **fields
) -> Workload:
    """ResNet-18 or -50; for small images without the first pooling. BatchNorm in eval."""
    small = size <= 64
    stem = [nn.Conv2d(3, 64, 3, 1, 1) if small else nn.Conv2d(3, 64, 7, 2, 3)]
    stem += [nn.BatchNorm2d(64), nn.ReLU()]
    stem += [] if small else [nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(_Residual(inputs, width, stride, bottleneck))
            inputs = 4 * width if bottleneck else width
    classes = 10 if small else 1000
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    model = nn.Sequential(*stem, *blocks, *head)
    X, y = torch.randn(num_data, 3, size, size), torch.randint(0, classes, (num_data,))
    w = _workload(name, model, X, y, num_data, **fields)
    _set_statistics(w)
    return w


def _set_statistics(w: Workload) -> None:
    """Running statistics of the batch norms as after training on this data."""
    norms = [m for m in w.model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad():
        w.model(w.data[0][0][:32])
    w.model.eval()


def tiny() -> Workload:
    """For first times."""
    X, y = torch.randn(4, 3), torch.randint(0, 2, (4,))
    return _workload("tiny", nn.Sequential(nn.Linear(3, 2)), X, y, 2)


# On a processor the data is small: a gradient takes about 20 ms, of ResNet-18 0.3 s, and
# what is timed is the cost in gradients.
ON_CPU: dict[str, Callable[[], Workload]] = {
    "mlp": lambda: mlp("MLP, batches of 256", 256),
    "mlp32": lambda: mlp("MLP, batches of 32", 32),
    "deep": lambda: deep_narrow("deep narrow tanh"),
    "cnn": lambda: cnn("CNN without norm", norm=False),
    "cnn_gn": lambda: cnn("CNN with GroupNorm", norm=True),
    "gpt": lambda: gpt("small GPT"),
    "resnet18": lambda: resnet(
        "ResNet-18", [2, 2, 2, 2], bottleneck=False, size=32, num_data=8, columns=(1, 8)
    ),
}

ON_GPU: dict[str, Callable[[], Workload]] = {
    "resnet18": lambda: resnet(
        "ResNet-18", [2, 2, 2, 2], bottleneck=False, size=32, num_data=256
    ),
    "resnet50": lambda: resnet(
        "ResNet-50", [3, 4, 6, 3], bottleneck=True, size=224, num_data=32
    ),
    "gpt124m": lambda: gpt(
        "GPT, 124M",
        vocabulary=50257,
        width=768,
        depth=12,
        heads=12,
        length=1024,
        num_data=2,
        batch_size=2,
    ),
}


def on(device: str) -> dict[str, Callable[[], Workload]]:
    """The networks for ``"cpu"`` or ``"cuda"``."""
    return ON_GPU if device == "cuda" else ON_CPU
