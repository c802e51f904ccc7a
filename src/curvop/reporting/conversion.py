"""The same target in another precision, or on another device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from curvop.reporting.target import Target, TargetError
from curvop.risk import nested, tensors_in


class Cast:
    """Data whose floating-point tensors are of one type."""

    def __init__(self, source: Any, dtype: torch.dtype) -> None:
        self._source = source
        self._dtype = dtype

    def __iter__(self) -> Iterator[Any]:
        for batch in self._source:
            yield nested.map_tensors(self._cast, batch)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)  # a loader's generators

    def _cast(self, t: Tensor) -> Tensor:
        return t.to(self._dtype) if t.is_floating_point() else t


def converted(
    target: Target, dtype: torch.dtype | None, device: torch.device | None
) -> Target:
    """A copy of the target with other tensors; the target itself where nothing changes.

    Raises:
        TargetError: If the model is a callable, whose tensors cannot be reached.
    """
    same_dtype = dtype is None or all(p.dtype == dtype for p in target.tensors)
    same_device = device is None or all(p.device == device for p in target.tensors)
    if same_dtype and same_device:
        return target
    if not isinstance(target.model, nn.Module):
        raise TargetError(
            "dtype and device need a module as model, whose tensors can be converted, got "
            f"a {type(target.model).__name__}. Convert it in your function."
        )
    read = tensors_in(target.loss) if callable(target.loss) else {}
    if any(id(p) in read for p in target.tensors):
        raise TargetError(
            "dtype and device make a copy of the module, and the loss refers to parameters "
            "of the original. Convert both in your function."
        )
    model = copy.deepcopy(target.model).to(device=device, dtype=dtype)
    loss = target.loss
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).to(device=device, dtype=dtype)
    name_of = {id(p): name for name, p in target.model.named_parameters()}
    new = dict(model.named_parameters())
    params: list[Tensor] | dict[str, Tensor]
    try:
        if isinstance(target.params, dict):
            params = {key: new[name_of[id(p)]] for key, p in target.params.items()}
        else:
            params = [new[name_of[id(p)]] for p in target.params]
    except KeyError:
        raise TargetError(
            "dtype and device need the module's own parameters, for instance "
            "model.parameters(), not copies."
        ) from None
    data = target.data if dtype is None else Cast(target.data, dtype)
    return replace(target, model=model, loss=loss, params=params, data=data)
