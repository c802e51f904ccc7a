"""The modules of an ``nn.Sequential``: functions in double precision, and their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from curvop.curvature import NonDeterministicError
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


# ------------------------------------------------------------ forward pass


def activations(layers: Sequence[Layer], X: Tensor) -> list[Tensor]:
    """``z_0 = X, z_1, …, z_L``, in double precision.

    Raises:
        TypeError: If a layer cannot be called with one tensor, or returns something else.
        ValueError: If a layer does not fit its input, or writes to its buffers.
        NonDeterministicError: If a layer is random.
    """
    Z = [in_double(X)]
    with torch.no_grad():
        for layer in layers:
            Z.append(_evaluate(layer, Z[-1]))
    return Z


def first_not_finite(layers: Sequence[Layer], Z: Sequence[Tensor]) -> str:
    """Where NaN or infinity comes from: the name of a layer, the inputs, or the loss."""
    names = ["the inputs", *(layer.name for layer in layers)]
    infinite = (name for name, z in zip(names, Z, strict=True) if not z.isfinite().all())
    return next(infinite, "the loss")


def _evaluate(layer: Layer, z: Tensor) -> Tensor:
    _refuse_dropout(layer)
    written, dice = layer.buffers(), _dice(z.device)
    try:
        out = layer(z, buffers=written)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"Expected modules of one input, but {layer.name} cannot be called with one "
            f"tensor of shape {tuple(z.shape)}: {error}"
        ) from error
    if not isinstance(out, Tensor):
        raise TypeError(
            f"Expected one tensor from each stage, got {type(out).__name__} from "
            f"{layer.name}. Wrap it in a module that returns what the next stage needs."
        )
    again = layer(z)
    is_random = any(a != b for a, b in zip(dice, _dice(z.device), strict=True))
    if is_random or not torch.equal(out.nan_to_num(), again.nan_to_num()):
        raise NonDeterministicError(
            f"Expected stages without randomness, but {layer.name} draws random numbers "
            "or gives another result each time. Call model.eval(), or remove it."
        )
    if not all(map(torch.equal, written, layer.buffers())):
        raise ValueError(
            f"Expected stages that leave their buffers as they are, but {layer.name} "
            "updates its running statistics. Call model.eval() to use them, or build "
            "the layer with track_running_stats=False for those of the batch."
        )
    return out


def _refuse_dropout(layer: Layer) -> None:
    """Refuse dropout by its class, since two masks of few units may be equal by chance."""
    for module in layer.module.modules():
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise NonDeterministicError(
                f"Expected stages without randomness, but {layer.name} has dropout in "
                "train mode. Call model.eval(), or set p=0."
            )


def _dice(device: torch.device) -> list[bytes]:
    """The states of torch's generators, which change when a number is drawn."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [state.numpy().tobytes() for state in states]
