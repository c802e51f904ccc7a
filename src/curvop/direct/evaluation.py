"""The forward pass: the input of each layer; layers must be deterministic functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from curvop.curvature import NonDeterministicError
from curvop.direct.layers import Layer, in_double


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
