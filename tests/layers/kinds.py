"""Every kind of layer that is known, by its own module, and some written out by hand.

By hand each is linear layers at positions: what is right for those is known elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases.problem import Problem, classes, normal, seeded


class Headed(nn.Module):
    """A layer, an activation, the mean over positions, and a head."""

    def __init__(self, build: Callable[[], nn.Module], size: int, head: int) -> None:
        super().__init__()
        self.layer, self.head = build(), nn.Linear(head, 3)
        self.size = size

    def forward(self, X: Any) -> Tensor:
        """Two inputs are halves of one, so that there is one tensor with data leading."""
        parts = X.split([self.size, X.shape[-1] - self.size], -1) if self.size else (X,)
        out = self.layer(*parts)
        while not isinstance(out, Tensor):
            out = out[0]
        return self.head(out.flatten(1).tanh())


@dataclass(frozen=True)
class Kind:
    """A layer between data and a head.

    Attributes:
        build: Makes the layer.
        shape: Of what goes in, for one datum.
        split: Size of the first of two inputs.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    split: int = 0

    def problem(self) -> Problem:
        """The layer in a network, with five data."""
        X, y = self.inputs(), classes(3, 5)
        with torch.random.fork_rng(devices=[]):
            probe = Headed(self.build, self.split, 1)
            probe.head = nn.Identity()  # type: ignore[assignment]
            size = probe.double()(X).shape[1]
        model = seeded(lambda: Headed(self.build, self.split, size), torch.float64)
        return Problem(model, list(model.parameters()), nn.CrossEntropyLoss(), X, y)

    def inputs(self) -> Tensor:
        """Of five data."""
        return normal(torch.float64, 5, *self.shape)


def transposed(layer: Any, X: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """A linear layer at each position of the input, added up in windows of the output.

    Args:
        layer: The transposed convolution.
        X: What goes in.
        weights: The transposed weight of each group, ``[m, d]``.
    """
    d, G = X.ndim - 2, layer.groups
    # in two dimensions, where torch can fold; of each group
    z = X[..., None] if d == 1 else X
    one = [] if d == 2 else [1]
    kernel, stride, dilation = (
        [*t, *one] for t in (layer.kernel_size, layer.stride, layer.dilation)
    )
    padding, extra = (
        [*t, *(0 for _ in one)] for t in (layer.padding, layer.output_padding)
    )
    numbers = zip(z.shape[2:], stride, padding, dilation, kernel, extra, strict=True)
    size = [(n - 1) * s - 2 * p + a * (k - 1) + e + 1 for n, s, p, a, k, e in numbers]
    outputs = []
    for z_g, W in zip(z.chunk(G, 1), weights, strict=True):
        u = F.linear(z_g.flatten(2).mT, W)  # [N, T, m]
        outputs.append(
            F.fold(u.mT, size, kernel, dilation=dilation, padding=padding, stride=stride)
        )
    a = torch.cat(outputs, 1)
    a = a[..., 0] if d == 1 else a
    return a if layer.bias is None else a + layer.bias.view(-1, *(1,) * d)


TRANSPOSED: dict[str, Kind] = {
    "1d": Kind(lambda: nn.ConvTranspose1d(2, 3, 2), (2, 3)),
    "1d strided": Kind(lambda: nn.ConvTranspose1d(2, 3, 3, 2, 1, 1, bias=False), (2, 3)),
    "2d": Kind(
        lambda: nn.ConvTranspose2d(2, 2, (2, 3), (2, 1), (1, 0), dilation=(1, 2)),
        (2, 3, 2),
    ),
    "2d groups": Kind(lambda: nn.ConvTranspose2d(4, 2, 2, groups=2), (4, 2, 2)),
    "3d": Kind(
        lambda: nn.ConvTranspose3d(2, 2, (1, 2, 2), padding=(0, 1, 0)), (2, 2, 2, 1)
    ),
}
BILINEAR: dict[str, Kind] = {
    "bilinear": Kind(lambda: nn.Bilinear(2, 3, 2), (5,), 2),
    "bilinear at positions": Kind(lambda: nn.Bilinear(3, 1, 2, bias=False), (3, 4), 3),
}


def _recurrent(kind: Any, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(*args, batch_first=True, **options)


RECURRENT: dict[str, Kind] = {
    "lstm": Kind(_recurrent(nn.LSTM, 2, 2), (3, 2)),
    "lstm two ways, two layers": Kind(
        _recurrent(nn.LSTM, 2, 1, 2, bidirectional=True), (2, 2)
    ),
    "lstm projected": Kind(_recurrent(nn.LSTM, 2, 3, proj_size=2, bias=False), (3, 2)),
    "gru": Kind(_recurrent(nn.GRU, 2, 2), (3, 2)),
    "gru two ways": Kind(_recurrent(nn.GRU, 2, 1, bidirectional=True), (3, 2)),
    "rnn": Kind(_recurrent(nn.RNN, 2, 3), (3, 2)),
    "rnn relu": Kind(_recurrent(nn.RNN, 2, 3, nonlinearity="relu"), (3, 2)),
    "lstm cell": Kind(lambda: nn.LSTMCell(2, 2), (2,)),
    "gru cell": Kind(lambda: nn.GRUCell(2, 3), (2,)),
    "rnn cell": Kind(lambda: nn.RNNCell(2, 3), (2,)),
}
OTHERS: dict[str, Kind] = {
    "linear": Kind(lambda: nn.Linear(2, 3), (4, 2)),
    "convolution": Kind(
        lambda: nn.Conv2d(4, 6, (2, 3), (1, 2), (1, 0), groups=2), (4, 2, 3)
    ),
    "same": Kind(lambda: nn.Conv1d(2, 3, 4, padding="same", dilation=2), (2, 5)),
    "layer norm": Kind(lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "rms norm": Kind(lambda: nn.RMSNorm(4), (4,)),
    "group norm": Kind(lambda: nn.GroupNorm(2, 4), (4, 3)),
    "batch norm": Kind(lambda: nn.BatchNorm1d(4).eval(), (4, 3)),
    "instance norm": Kind(lambda: nn.InstanceNorm1d(4, affine=True), (4, 3)),
}
NEW = {**TRANSPOSED, **BILINEAR, **RECURRENT}
EVERY = {**NEW, **OTHERS}


def linear_loop(
    layer: Any, X: Tensor, gates: Callable[..., Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """A recurrent layer step by step: all outputs, ``[N, T, m]``, and the last one."""
    p = dict(layer.named_parameters())
    h = [X.new_zeros(len(X), layer.hidden_size)] * 2
    outputs = []
    for t in range(X.shape[1]):
        of_x = F.linear(X[:, t], p["weight_ih_l0"], p["bias_ih_l0"])
        of_h = F.linear(h[0], p["weight_hh_l0"], p["bias_hh_l0"])
        h = list(gates(of_x, of_h, *h))
        outputs.append(h[0])
    return torch.stack(outputs, 1), h[0]
