"""The second-order expansion of a layer: which kind of stage it becomes."""

from __future__ import annotations

import torch
from torch import Size, Tensor, nn

from curvop.direct.double_backward import gradient, hessian, jacobian
from curvop.direct.layers import Layer, has_hooks
from curvop.direct.linear import LinearStage
from curvop.direct.stages import DenseStage, ElementwiseStage, Stage

# Each output depends on the input at the same flat position only. Dropout is not in train
# mode here.
_ELEMENTWISE = {
    nn.CELU,
    nn.Dropout,
    nn.ELU,
    nn.Flatten,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
    nn.Unflatten,
}


def is_structured(layer: Layer) -> bool:
    """Whether the stage has no dense derivatives."""
    kind = type(layer.module)
    return (kind is nn.Linear or kind in _ELEMENTWISE) and not has_hooks(layer.module)


def expand(layer: Layer, z: Tensor, λ: Tensor, *, moves: bool) -> Stage:
    """Expand a layer at its input.

    Args:
        layer: The layer.
        z: The input.
        λ: Adjoint of the output, flat; zero for the Gauss-Newton matrix.
        moves: Whether the input depends on parameters.

    Raises:
        RuntimeError: If the layer has no second derivatives.
    """
    try:
        if not is_structured(layer):
            return _dense(layer, z, λ, moves)
        if isinstance(layer.module, nn.Linear):
            return _linear(layer, layer.module, z, λ, moves)
        return _elementwise(layer, z, λ)
    except RuntimeError as error:
        raise RuntimeError(
            f"Expected stages that torch can differentiate twice, but for {layer.name} it "
            f"says: {error}. Replace the module by one composed of other operations."
        ) from error


def _linear(
    layer: Layer, module: nn.Linear, z: Tensor, λ: Tensor, moves: bool
) -> LinearStage:
    trained = {id(p) for p in layer.parameters}
    W = module.weight.detach().to(torch.float64, copy=True)
    return LinearStage(
        layer.name,
        _shapes(layer),
        W,
        z.reshape(-1, W.shape[1]),
        λ.reshape(-1, W.shape[0]),
        has_weight=id(module.weight) in trained,
        has_bias=id(module.bias) in trained,
        moves=moves,
    )


def _elementwise(layer: Layer, z: Tensor, λ: Tensor) -> ElementwiseStage:
    """Entries are independent: one gradient of their sum gives all derivatives."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        d = gradient(layer(z).sum(), z, create_graph=True)
        q = gradient(d.sum(), z, create_graph=False)
    return ElementwiseStage(layer.name, d.detach().flatten(), λ * q.flatten())


def _dense(layer: Layer, z: Tensor, λ: Tensor, moves: bool) -> DenseStage:
    with torch.enable_grad():
        x = [value.detach().requires_grad_() for value in layer.values]
        z = z.detach().requires_grad_(moves)
        inputs = [z, *x] if moves else x
        out = layer(z, x).flatten()
        J = jacobian(out, inputs)
        N = J.shape[1]
        H = hessian(λ @ out, inputs) if bool(λ.any()) else J.new_zeros(N, N)
    return DenseStage(layer.name, _shapes(layer), J, H)


def _shapes(layer: Layer) -> tuple[Size, ...]:
    return tuple(value.shape for value in layer.values)
