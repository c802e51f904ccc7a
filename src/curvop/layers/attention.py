"""Attention of torch with its linear layers in sight, the data leading in each."""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``multi_head_attention_forward``, of which a mode sees the linear layers.

    The same code as torch's, but without the question whether a mode wants to see the
    whole of it. Positions lead there: ``[T, N, E]``, or ``[T·N, E]``.
    """
    N = query.shape[1] if query.ndim == 3 else 1
    names: dict[str, Any] = {
        **vars(F),
        "has_torch_function": lambda _: False,
        "linear": partial(_data_leading, N),
    }
    for inner in ("_in_projection_packed", "_in_projection"):
        names[inner] = _within(getattr(F, inner), names)
    return _within(F.multi_head_attention_forward, names)(query, *args, **kwargs)


def _data_leading(N: int, z: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """The linear layer with the axis of the data in front, and back."""
    by_data = z.reshape(-1, N, z.shape[-1]).transpose(0, 1)
    return F.linear(by_data, W, b).transpose(0, 1).reshape(*z.shape[:-1], len(W))


def _within(function: Any, names: dict[str, Any]) -> FunctionType:
    """A function with other names around it."""
    return FunctionType(function.__code__, names, argdefs=function.__defaults__)
