"""Layers: the modules of an ``nn.Sequential``, each as a function in double precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvop.risk import buffer_slots, parameter_slots, substituted


@dataclass(frozen=True)
class Layer:
    """One module of the chain, ``z_out = f(z; x)``.

    Attributes:
        name: Its position and class, as in ``stage '2' (Linear)``.
        module: The user's module.
        parameters: Its parameters that require a gradient; the others are constants.
        values: Copies of them in double precision.
    """

    name: str
    module: nn.Module
    parameters: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Number of entries of the parameters."""
        return sum(x.numel() for x in self.values)

    def value(self, parameter: Tensor | None) -> Tensor | None:
        """The copy of one of the parameters; ``None`` if that is a constant."""
        pairs = zip(self.parameters, self.values, strict=True)
        return next((x for p, x in pairs if p is parameter), None)

    def __call__(
        self,
        z: Tensor,
        x: Sequence[Tensor] | None = None,
        buffers: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Call the module with other tensors in place of its own.

        Args:
            z: Input. A module that works in place gets a copy.
            x: Parameters, by default :attr:`values`.
            buffers: Buffers that the module may write to, by default fresh copies.
        """
        values = dict(zip(map(id, self.parameters), x or self.values, strict=True))
        held = parameter_slots(self.module)
        slots = [slot for slot, _ in held] + buffer_slots([self.module])
        tensors = [values.get(id(p), in_double(p)) for _, p in held]
        with substituted(slots, [*tensors, *(buffers or self.buffers())]):
            out: Tensor = self.module(z.clone())
        return out

    def buffers(self) -> list[Tensor]:
        """Copies of the buffers, in double precision if they are floating-point."""
        return [in_double(table[key]) for table, key in buffer_slots([self.module])]


def in_double(t: Tensor) -> Tensor:
    """A copy without a graph; real numbers in double precision."""
    dtype = torch.float64 if t.is_floating_point() else t.dtype
    return t.detach().to(dtype, copy=True)


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers of a chain, in order.

    Raises:
        TypeError: If the model is not a plain ``nn.Sequential``, or its parameters differ
            in dtype.
        ValueError: If a parameter is used twice, none requires a gradient, or they are on
            several devices.
    """
    if not isinstance(model, nn.Sequential) or not _is_plain(model):
        raise TypeError(
            "Expected an nn.Sequential that calls its modules one after another, without "
            f"hooks, got {_what(model)}. For any other model use HessianLinearOperator "
            "or GGNLinearOperator with an iterative solver."
        )
    layers = [_layer(key, module) for key, module in _modules(model, "")]
    _check_parameters(model, layers)
    return layers


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a Sequential that only calls its modules."""
    return type(module).forward is nn.Sequential.forward and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs anything other than ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _what(x: object) -> str:
    if isinstance(x, nn.Sequential):
        return f"{type(x).__name__} with hooks or a forward of its own"
    return type(x).__name__


def _modules(model: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules with their names; Sequentials within Sequentials are unfolded."""
    for key, module in model._modules.items():
        assert module is not None
        if isinstance(module, nn.Sequential) and _is_plain(module):
            yield from _modules(module, f"{prefix}{key}.")
        else:
            yield prefix + key, module


def _layer(key: str, module: nn.Module) -> Layer:
    trained = tuple(p for p in module.parameters() if p.requires_grad)
    name = f"stage {key!r} ({type(module).__name__})"
    return Layer(name, module, trained, tuple(in_double(p) for p in trained))


def _check_parameters(model: nn.Module, layers: Sequence[Layer]) -> None:
    owner: dict[int, Layer] = {}
    first: tuple[Layer, Tensor] | None = None
    for layer in layers:
        for p in layer.module.parameters():
            other = owner.setdefault(id(p), layer)
            if other is not layer:
                what = "the same module as" if other.module is layer.module else "tied to"
                raise ValueError(
                    f"Expected each parameter in one stage, but {layer.name} is {what} "
                    f"{other.name}. Copy it, or use HessianLinearOperator with an "
                    "iterative solver."
                )
            first = first or (layer, p)
            _check_alike(layer, p, *first)
    strangers = [name for name, p in model.named_parameters() if id(p) not in owner]
    if strangers:
        raise ValueError(f"Expected parameters of the stages only, got {strangers}.")
    if not any(layer.parameters for layer in layers):
        raise ValueError(
            "Expected at least one parameter that requires a gradient, got none. "
            "Unfreeze some: p.requires_grad_(True)."
        )


def _check_alike(layer: Layer, p: Tensor, first: Layer, q: Tensor) -> None:
    if not p.is_floating_point() or p.dtype != q.dtype:
        raise TypeError(
            f"Expected real parameters of one dtype, got {q.dtype} in {first.name} and "
            f"{p.dtype} in {layer.name}. Convert the model, for instance with .float()."
        )
    if p.device != q.device:
        raise ValueError(
            f"Expected parameters on one device, got {q.device} in {first.name} and "
            f"{p.device} in {layer.name}. Move the model with .to(device)."
        )
