"""Parameters and vectors in the forms that users pass: tensor, list, tuple, dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Structure = Tensor | Iterable[Tensor] | Mapping[str, Tensor]
Answer = Callable[[Sequence[Tensor]], Any]  # blocks -> the structure of the vector


def parameters(params: Structure) -> dict[Any, Tensor]:
    """The parameters by name, or by position where they have no names.

    Raises:
        TypeError: If they are none of the accepted kinds, or not real.
        ValueError: If there are none, one does not require a gradient or comes twice.
    """
    if isinstance(params, Tensor):
        params = [params]
    elif not isinstance(params, Iterable):
        raise TypeError(
            "Expected params as a tensor, a list, tuple or dict of tensors, got "
            f"{type(params).__name__}. For a model: list(model.parameters())."
        )
    found = dict(params if isinstance(params, Mapping) else enumerate(params))
    if not found:
        raise ValueError("Expected params with at least one tensor, got none.")
    for key, p in found.items():
        if not isinstance(p, Tensor):
            raise TypeError(
                f"Expected params of tensors, got {type(p).__name__} at {key!r}."
            )
        if not p.is_floating_point():
            raise TypeError(f"Expected floating-point params, got {p.dtype} at {key!r}.")
        if not p.requires_grad:
            raise ValueError(
                f"Expected params that require a gradient, got one that does not at "
                f"{key!r}. Call .requires_grad_() before func computes with it."
            )
    if len({id(p) for p in found.values()}) < len(found):
        raise ValueError(
            "Expected each parameter once, got one of them twice. A tied weight is one "
            "parameter: leave the second out."
        )
    return found


def trainable(model: nn.Module) -> dict[Any, Tensor]:
    """The parameters of a module that require a gradient, by name.

    Raises:
        TypeError: If it is not a module, or a parameter is not real.
        ValueError: If there are none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"Expected an nn.Module, got {type(model).__name__}. For a function there is "
            "exact_hvp(func, params, v)."
        )
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(
            "Expected a model with parameters that require a gradient, got none. Call "
            ".requires_grad_() on those to differentiate with respect to."
        )
    return parameters(found)


def vector(v: Structure, params: Mapping[Any, Tensor]) -> tuple[list[Tensor], Answer]:
    """The blocks of ``v`` in the order of the parameters, and a function back to its form.

    Args:
        v: Blocks as a list, tuple, or dict by the names of the parameters; or one tensor,
            shaped as the only parameter or ``[P]`` over all of them.
        params: The parameters.

    Raises:
        TypeError: If the kind or a dtype does not fit.
        ValueError: If the number of blocks, a name, shape or device does not fit.
    """
    ps = list(params.values())
    if isinstance(v, Tensor):
        blocks, answer = _of_tensor(v, ps)
    elif isinstance(v, Mapping):
        blocks, answer = _of_mapping(v, list(params))
    elif isinstance(v, list | tuple):
        form = tuple if isinstance(v, tuple) else list
        blocks, answer = list(v), form
    else:
        raise TypeError(
            f"Expected v as a tensor, a list, tuple or dict of tensors, got "
            f"{type(v).__name__}."
        )
    if len(blocks) != len(ps):
        raise ValueError(
            f"Expected v with {len(ps)} tensors, one for each parameter, got {len(blocks)}."
        )
    for key, block, p in zip(params, blocks, ps, strict=True):
        _check(block, p, key)
    with torch.inference_mode(False):
        # autograd refuses to save tensors that were made in inference mode
        return [b.clone() if b.is_inference() else b for b in blocks], answer


def _of_tensor(v: Tensor, ps: Sequence[Tensor]) -> tuple[list[Tensor], Answer]:
    if len(ps) == 1 and v.shape == ps[0].shape:
        return [v], lambda blocks: blocks[0]
    sizes = [p.numel() for p in ps]
    if v.shape != (sum(sizes),):
        one = f" or {tuple(ps[0].shape)}" if len(ps) == 1 and ps[0].ndim != 1 else ""
        raise ValueError(
            f"Expected v of shape ({sum(sizes)},){one}, or a list with one tensor a "
            f"parameter ({len(ps)}), got shape {tuple(v.shape)}."
        )
    parts = zip(v.split(sizes), ps, strict=True)
    blocks = [part.reshape(p.shape) for part, p in parts]
    return blocks, lambda out: torch.cat([b.reshape(-1) for b in out])


def _of_mapping(v: Mapping[str, Tensor], keys: list[Any]) -> tuple[list[Tensor], Answer]:
    if keys == list(range(len(keys))):
        raise TypeError(
            "Expected v as a tensor, list or tuple, got a dict: the parameters have no "
            "names. Pass params as a dict, too."
        )
    if set(v) != set(keys):
        raise ValueError(f"Expected v with the keys {keys}, got {list(v)}.")

    def answer(blocks: Sequence[Tensor]) -> dict[str, Tensor]:
        by_key = dict(zip(keys, blocks, strict=True))
        return {key: by_key[key] for key in v}

    return [v[key] for key in keys], answer


def _check(block: Any, p: Tensor, key: Any) -> None:
    if not isinstance(block, Tensor):
        raise TypeError(f"Expected v of tensors, got {type(block).__name__} at {key!r}.")
    if block.shape != p.shape:
        raise ValueError(
            f"Expected v of shape {tuple(p.shape)} at {key!r}, got {tuple(block.shape)}."
        )
    if block.dtype != p.dtype:
        raise TypeError(
            f"Expected v of dtype {p.dtype} at {key!r}, got {block.dtype}. Convert it "
            f"with .to({p.dtype})."
        )
    if block.device != p.device:
        raise ValueError(
            f"Expected v on {p.device} at {key!r}, got {block.device}. Move it with "
            f".to({str(p.device)!r})."
        )
