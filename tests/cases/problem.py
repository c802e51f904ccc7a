"""A model, its parameters, a loss and data: what a curvature matrix is built from."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """What an operator is built from, and the same for the truth.

    Attributes:
        model: The model as curvop receives it.
        params: The parameters as curvop receives them.
        loss: The loss as curvop receives it.
        X: All inputs, data on the leading axis of each tensor.
        y: All targets.
        cuts: Sizes of the mini-batches.
        forward: ``X -> prediction``; the model itself if omitted.
        options: Further arguments of the operators.
    """

    model: Any
    params: list[Tensor] | dict[str, Tensor]
    loss: Any
    X: Any
    y: Any
    cuts: tuple[int, ...] = (2, 3)
    forward: Callable[[Any], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters, in the order of the blocks."""
        is_dict = isinstance(self.params, dict)
        return list(self.params.values()) if is_dict else list(self.params)

    @property
    def data(self) -> list[tuple[Any, Any]]:
        """The mini-batches."""
        ends = torch.tensor(self.cuts).cumsum(0).tolist()
        where = [slice(e - n, e) for n, e in zip(self.cuts, ends, strict=True)]
        return [(cut(self.X, rows), cut(self.y, rows)) for rows in where]

    def predict(self) -> Any:
        """The prediction for all data."""
        return (self.forward or self.model)(self.X)


def cut(x: Any, rows: slice) -> Any:
    """Some of the data, in any nest."""
    if isinstance(x, Tensor):
        return x[rows].clone()
    if isinstance(x, Mapping):
        return type(x)({key: cut(value, rows) for key, value in x.items()})
    return type(x)(cut(value, rows) for value in x)


def leaves_of(x: Any) -> list[Tensor]:
    """The tensors of a prediction: a tensor, or a tuple or dict of tensors."""
    if isinstance(x, Tensor):
        return [x]
    return list(x.values() if isinstance(x, Mapping) else x)


def refilled(x: Any, leaves: Sequence[Tensor]) -> Any:
    """A prediction like ``x`` with other tensors in it."""
    if isinstance(x, Tensor):
        return leaves[0]
    if isinstance(x, Mapping):
        return dict(zip(x, leaves, strict=True))
    return tuple(leaves)


def flat_terms(loss: Any) -> Callable[[Any, Any], Tensor]:
    """The same loss with ``reduction="none"``."""
    if isinstance(loss, nn.Module):
        loss = copy.copy(loss)
        loss.reduction = "none"
        return loss
    return functools.partial(loss, reduction="none")


def seeded(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A module in double precision with random entries everywhere, then cast."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().double()
        for p in module.parameters():
            p.data.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))
    return module.to(dtype)


def normal(dtype: torch.dtype, *shape: int, seed: int = 1) -> Tensor:
    """Standard normal numbers, the same in every precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def classes(high: int, *shape: int, ignore: bool = False) -> Tensor:
    """Class indices; with ``ignore``, the second one is -100."""
    generator = torch.Generator().manual_seed(2)
    y = torch.randint(high, shape, generator=generator)
    if ignore:
        y.view(-1)[1] = -100
    return y


def bits(dtype: torch.dtype, *shape: int) -> Tensor:
    """Targets 0 and 1."""
    return (normal(dtype, *shape, seed=3) > 0).to(dtype)


def cross_entropy(dtype: torch.dtype, C: int = 3) -> nn.Module:
    """Cross-entropy with every option: targets differ in weight, one is ignored."""
    weight = torch.linspace(0.5, 2.0, C, dtype=dtype)
    return nn.CrossEntropyLoss(weight=weight, ignore_index=-100, label_smoothing=0.1)


def bce(dtype: torch.dtype, C: int) -> nn.Module:
    """Binary cross-entropy with weighted positives."""
    return nn.BCEWithLogitsLoss(pos_weight=torch.linspace(0.5, 2.0, C, dtype=dtype))
