"""Networks written out as functions that show what goes in and out of each layer.

``forward(p, X, note)`` calls ``note(weight, bias, z, a, by_position)`` for each layer:
``z`` ``[T, d]`` are the inputs of one datum by position (only asked for with one datum),
``a`` is the output, and ``by_position`` turns a gradient of its shape into ``[T, a]``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.comparing import random

Params = dict[str, Tensor]
Note = Callable[..., None]


def silent(*_: Any) -> None:
    """Notes nothing."""


@dataclass(frozen=True, eq=False)
class Network:
    """A model with one loss-ready prediction per datum, and inputs for it."""

    name: str
    params: Callable[[], Params]
    forward: Callable[[Params, Tensor, Note], Tensor]
    X: Tensor

    def __call__(self, p: Params, X: Tensor) -> Tensor:
        """What curvop gets."""
        return self.forward(p, X, silent)


def tensors(**shapes: tuple[int, ...]) -> Params:
    """Random parameters."""
    return {
        name: (0.7 * random(*shape, seed=20 + i)).requires_grad_()
        for i, (name, shape) in enumerate(shapes.items())
    }


def linear(p: Params, w: str, b: str | None, z: Tensor, note: Note) -> Tensor:
    """A linear layer."""
    a = F.linear(z, p[w], None if b is None else p[b])
    note(w, b, lambda: z.reshape(-1, z.shape[-1]), a, lambda g: g.reshape(-1, g.shape[-1]))
    return a


def conv(p: Params, w: str, b: str | None, z: Tensor, note: Note, **options: Any) -> Tensor:
    """A convolution; ``z`` is padded with zeros by the given number."""
    d = p[w].ndim - 2
    a = (F.conv1d, F.conv2d, F.conv3d)[d - 1](
        z, p[w], None if b is None else p[b], **options
    )
    note(
        w,
        b,
        lambda: windows(z[0], p[w].shape[2:], a.shape[2:], **options),
        a,
        lambda g: g[0].flatten(1).T,
    )
    return a


def windows(
    z: Tensor,
    kernel: torch.Size,
    out: torch.Size,
    *,
    stride: int = 1,
    padding: Any = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """What each output sees, entry by entry: ``[T, C k]``, all channels."""
    if padding == "same":
        total = [dilation * (k - 1) for k in kernel]
        pads = [[t // 2, t - t // 2] for t in total]
    else:
        pads = [[0 if padding == "valid" else padding] * 2 for _ in kernel]
    z = F.pad(z, [n for pair in reversed(pads) for n in pair])
    rows = []
    for at in itertools.product(*map(range, out)):
        row = [
            z[
                (
                    slice(None),
                    *(i * stride + j * dilation for i, j in zip(at, o, strict=True)),
                )
            ]
            for o in itertools.product(*map(range, kernel))
        ]
        rows.append(torch.stack(row, 1).flatten())
    return torch.stack(rows)


# ---------------------------------------------------------------------- networks


def mlp() -> Network:
    def forward(p: Params, X: Tensor, note: Note) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X, note))
        return linear(p, "V", "c", h, note)

    shapes = {"W": (4, 2), "b": (4,), "V": (3, 4), "c": (3,)}
    return Network("mlp", lambda: tensors(**shapes), forward, random(7, 2))


def tokens() -> Network:
    """Three positions, mixed in the middle, summarised at the end; no bias in one."""

    def forward(p: Params, X: Tensor, note: Note) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X, note))
        h = h + h.roll(1, 1) * 0.5
        return linear(p, "V", None, h, note).mean(1)

    shapes = {"W": (4, 2), "b": (4,), "V": (3, 4)}
    return Network("tokens", lambda: tensors(**shapes), forward, random(7, 3, 2))


def grid() -> Network:
    """Two leading dimensions beside the data."""

    def forward(p: Params, X: Tensor, note: Note) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X, note))
        return linear(p, "V", "c", h, note).tanh().sum((1, 2))

    shapes = {"W": (3, 2), "b": (3,), "V": (3, 3), "c": (3,)}
    return Network("grid", lambda: tensors(**shapes), forward, random(7, 2, 2, 2))


def flattened() -> Network:
    """Positions are put on the axis of the data and taken off again."""

    def forward(p: Params, X: Tensor, note: Note) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X.flatten(0, 1), note))
        return linear(p, "V", None, h.unflatten(0, X.shape[:2]), note).mean(1)

    shapes = {"W": (4, 2), "b": (4,), "V": (3, 4)}
    return Network("flattened", lambda: tensors(**shapes), forward, random(7, 3, 2))


def called_twice() -> Network:
    def forward(p: Params, X: Tensor, note: Note) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X, note))
        h = torch.tanh(linear(p, "W", "b", h, note))
        return linear(p, "V", "c", h, note)

    shapes = {"W": (3, 3), "b": (3,), "V": (3, 3), "c": (3,)}
    return Network("called_twice", lambda: tensors(**shapes), forward, random(7, 3))


def tied_weight() -> Network:
    """One weight with two biases: they are not always used together."""

    def forward(p: Params, X: Tensor, note: Note) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X, note))
        return linear(p, "W", "c", h, note)

    shapes = {"W": (3, 3), "b": (3,), "c": (3,)}
    return Network("tied_weight", lambda: tensors(**shapes), forward, random(7, 3))


def _conv(
    name: str, shape: tuple[int, ...], size: tuple[int, ...], **options: Any
) -> Network:
    d = len(size) - 1
    pad = options.pop("circular", 0)

    def forward(p: Params, X: Tensor, note: Note) -> Tensor:
        z = F.pad(X, [pad] * 2 * d, mode="circular") if pad else X
        h = torch.tanh(conv(p, "W", "b", z, note, **options))
        return linear(p, "V", "c", h.flatten(2).mean(2), note)

    shapes = {"W": shape, "b": shape[:1], "V": (3, shape[0]), "c": (3,)}
    return Network(name, lambda: tensors(**shapes), forward, random(7, *size))


NETWORKS: list[Network] = [
    mlp(),
    tokens(),
    grid(),
    flattened(),
    called_twice(),
    tied_weight(),
    _conv("conv1d", (3, 2, 2), (2, 5), stride=2, padding=1),
    _conv("conv1d-same", (3, 2, 4), (2, 5), padding="same", dilation=2),
    _conv("conv1d-valid", (3, 2, 2), (2, 4), padding="valid"),
    _conv("conv2d", (2, 2, 2, 2), (2, 3, 4), padding=1, stride=2),
    _conv("conv2d-dilated", (2, 1, 2, 2), (1, 4, 4), dilation=2, padding=1),
    _conv("conv2d-circular", (2, 1, 3, 3), (1, 3, 3), circular=1),
    _conv("conv2d-1x1", (3, 2, 1, 1), (2, 2, 2)),
    _conv("conv2d-groups", (4, 1, 2, 2), (2, 3, 3), groups=2),
    _conv("conv1d-depthwise", (3, 1, 2), (3, 4), groups=3, padding=1),
    _conv("conv3d", (2, 1, 2, 1, 2), (1, 2, 2, 3)),
]
BY_NAME = {network.name: network for network in NETWORKS}


@functools.cache
def parameters(name: str) -> Params:
    """The parameters of a network, always the same."""
    return BY_NAME[name].params()
