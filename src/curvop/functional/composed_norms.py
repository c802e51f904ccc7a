"""Norm layers composed of functions that can be differentiated any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ComposedNorms(TorchFunctionMode):
    """Context in which the norms of this file replace torch's.

    The double backward of the fused kernels accounts for the dependence of mean and
    variance on the input, but autograd treats both as constants: third derivatives are
    silently wrong (pytorch#175754, #186256). Group and RMS norm are right. Activation
    checkpointing over such a norm calls the fused kernel in the backward pass, outside of
    this context, and then raises its CheckpointError.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the composed norm, if there is one."""
        return _COMPOSED.get(func, func)(*args, **(kwargs or {}))


def layer_norm(
    input: Tensor,  # [..., *normalized_shape]
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """As ``F.layer_norm``."""
    dims = list(range(input.ndim - len(normalized_shape), input.ndim))
    return _affine(_standardized(input, dims, eps), weight, bias).to(input.dtype)


def batch_norm(
    input: Tensor,  # [N, C, ...]
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.batch_norm``."""
    moments = running_mean, running_var
    if not training:  # affine in the input: torch's is right
        return F.batch_norm(input, *moments, weight, bias, training, momentum, eps)
    F.batch_norm(input.detach(), *moments, None, None, training, momentum, eps)
    x = _standardized(input, [0, *range(2, input.ndim)], eps)
    return _affine(x, *_per_channel(input, weight, bias)).to(input.dtype)


def instance_norm(
    input: Tensor,  # [N, C, ...]
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.instance_norm``."""
    moments = running_mean, running_var
    if not use_input_stats:
        return F.instance_norm(input, *moments, weight, bias, False, momentum, eps)
    F.instance_norm(input.detach(), *moments, None, None, True, momentum, eps)
    x = _standardized(input, list(range(2, input.ndim)), eps)
    return _affine(x, *_per_channel(input, weight, bias)).to(input.dtype)


def _standardized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # as the kernels do
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _per_channel(x: Tensor, *vectors: Tensor | None) -> list[Tensor | None]:
    shape = (-1, *[1] * (x.ndim - 2))
    return [None if v is None else v.reshape(shape) for v in vectors]


_COMPOSED: dict[Any, Any] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
}
