"""Parameters and vectors as users hand them in: a tensor, a list, a tuple, a dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Structure = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def values(x: Structure, what: str) -> list[Tensor]:
    """The tensors of a structure.

    Raises:
        TypeError: If it is none of the accepted kinds.
        ValueError: If it is empty.
    """
    if isinstance(x, Tensor):
        return [x]
    if not isinstance(x, list | tuple | Mapping):
        raise TypeError(
            f"Expected {what} as a tensor, a list, tuple or dict of tensors, got "
            f"{type(x).__name__}."
        )
    found = list(x.values()) if isinstance(x, Mapping) else list(x)
    for t in found:
        if not isinstance(t, Tensor):
            raise TypeError(f"Expected {what} of tensors, got {type(t).__name__} in it.")
    if not found:
        raise ValueError(f"Expected {what} with at least one tensor, got none.")
    return found


def parameters(params: Structure) -> list[Tensor]:
    """The parameters, checked to be differentiable.

    Raises:
        TypeError: If one is not of a real floating-point type.
        ValueError: If one does not require a gradient.
    """
    found = values(params, "params")
    for i, p in enumerate(found):
        if not p.is_floating_point():
            raise TypeError(f"Expected floating-point params, got {p.dtype} at {i}.")
        if not p.requires_grad:
            raise ValueError(
                f"Expected params that require a gradient, but number {i} does not. Call "
                ".requires_grad_() before func computes with it."
            )
    return found


def vector(v: Structure, params: Structure) -> list[Tensor]:
    """The blocks of ``v`` in the order of the parameters, checked against them.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the number of blocks, a name, shape or device does not fit.
    """
    ps = values(params, "params")
    if isinstance(v, Mapping) and isinstance(params, Mapping):
        if set(v) != set(params):
            raise ValueError(f"Expected v with the keys {list(params)}, got {list(v)}.")
        v = {key: v[key] for key in params}
    vs = values(v, "v")
    if len(vs) != len(ps):
        raise ValueError(
            f"Expected v with {len(ps)} tensors, one a parameter, got {len(vs)}."
        )
    for i, (a, p) in enumerate(zip(vs, ps, strict=True)):
        if a.shape != p.shape:
            raise ValueError(
                f"Expected v with shape {tuple(p.shape)} at position {i}, got "
                f"{tuple(a.shape)}."
            )
        if a.dtype != p.dtype:
            raise TypeError(
                f"Expected v of dtype {p.dtype} at position {i}, got {a.dtype}. Convert it "
                f"with .to({p.dtype})."
            )
        if a.device != p.device:
            raise ValueError(f"Expected v on {p.device} at position {i}, got {a.device}.")
    return vs


def like(v: Structure, blocks: Sequence[Tensor], params: Structure) -> Any:
    """Blocks in the order of the parameters, in the structure of ``v``."""
    if isinstance(v, Tensor):
        return blocks[0]
    if isinstance(v, Mapping):
        keys = params if isinstance(params, Mapping) else v
        by_key = dict(zip(keys, blocks, strict=True))
        return {key: by_key[key] for key in v}
    return tuple(blocks) if isinstance(v, tuple) else list(blocks)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module that require a gradient, by name.

    Raises:
        TypeError: If it is no module.
        ValueError: If there are none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected an nn.Module, got {type(model).__name__}.")
    found: dict[str, Tensor] = {
        n: p for n, p in model.named_parameters() if p.requires_grad
    }
    if not found:
        raise ValueError("Expected a model with trainable parameters, got none.")
    return found


def scalar(value: Any) -> Tensor:
    """What a function returned, checked to be a real scalar.

    Raises:
        TypeError: If it is no real floating-point tensor.
        ValueError: If it is no scalar.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"Expected func to return a real floating-point tensor, got {got}.")
    if value.numel() != 1:
        raise ValueError(
            f"Expected func to return a scalar, got shape {tuple(value.shape)}. Reduce it, "
            "for instance with .sum()."
        )
    return value.reshape(())


def gradient(func: Any, params: list[Tensor], *, create_graph: bool) -> tuple[Tensor, ...]:
    """Gradient of a closure; zero for what it does not use."""
    value = scalar(func())
    if not value.requires_grad:
        return tuple(torch.zeros_like(p) for p in params)
    return torch.autograd.grad(
        value, params, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def pull(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """``Jᵀ u`` on a graph that is kept; what depends on nothing adds nothing."""
    used = [(o, u) for o, u in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not used:
        return [torch.zeros_like(p) for p in inputs]
    outs, us = zip(*used, strict=True)
    return list(
        torch.autograd.grad(
            outs,
            inputs,
            us,
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )
