"""Recurrent layers of torch as a loop of linear layers over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]  # h; of an LSTM h and c
# ``(W_ih x + b_ih, W_hh h + b_hh, state) -> state``
Gates = Callable[[Tensor, Tensor, State], State]


def _elman(activation: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, _: State) -> State:
    return (activation(x + h),)


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    z = (xz + hz).sigmoid()
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (n + z * (state[0] - n),)


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _layer(
    gates: Gates, x: Tensor, state: State, W: Sequence[Tensor], has_biases: bool, back: bool
) -> tuple[Tensor, State]:
    """One layer in one direction: ``[T, N, d] -> [T, N, m]``, and the last state."""
    b_ih, b_hh = W[2:4] if has_biases else (None, None)
    projection = W[-1] if len(W) > 2 + 2 * has_biases else None
    inputs = F.linear(x.transpose(0, 1), W[0], b_ih).unbind(1)  # data lead
    outputs = []
    for of_x in reversed(inputs) if back else inputs:
        h, *c = gates(of_x, F.linear(state[0], W[1], b_hh), state)
        if projection is not None:
            h = F.linear(h, projection)
        state = (h, *c)
        outputs.append(h)
    return torch.stack(outputs[::-1] if back else outputs), state


def _recurrent(
    gates: Gates,
    input: Tensor,
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """What ``torch.lstm`` and its like compute, layer by layer."""
    first = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    directions = 1 + bidirectional
    each = len(params) // (num_layers * directions)
    x, last = input.transpose(0, 1) if batch_first else input, []
    for i in range(num_layers):
        outputs = []
        for j in range(directions):
            k = i * directions + j
            W, state = params[k * each : (k + 1) * each], tuple(s[k] for s in first)
            out, state = _layer(gates, x, state, W, has_biases, bool(j))
            outputs.append(out)
            last.append(state)
        x = torch.cat(outputs, -1)
        if dropout and train and i < num_layers - 1:
            x = torch.dropout(x, dropout, train)
    x = x.transpose(0, 1) if batch_first else x
    return (x, *(torch.stack(s) for s in zip(*last, strict=True)))


def _cell(
    gates: Gates,
    input: Tensor,
    hx: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    """One step."""
    state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    new = gates(F.linear(input, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
    return new[0] if len(new) == 1 else new


_GATES: dict[str, Gates] = {
    "rnn_tanh": partial(_elman, torch.tanh),
    "rnn_relu": partial(_elman, torch.relu),
    "gru": _gru,
    "lstm": _lstm,
}
LOOPS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, name): partial(_recurrent, g) for name, g in _GATES.items()},
    **{getattr(torch, f"{name}_cell"): partial(_cell, g) for name, g in _GATES.items()},
}


def is_packed(function: Any, args: Sequence[Any]) -> bool:
    """Whether data are of unequal length, for which there is no loop here."""
    return function in LOOPS and len(args) > 3 and isinstance(args[3], list | tuple)
