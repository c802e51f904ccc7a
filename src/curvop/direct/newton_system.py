"""The Newton system of a chain: its layers and its loss, expanded to second order.

    minimise  ½ Σ_l (u_{l-1}ᵀ Q_l u_{l-1} + 2 x_lᵀ S_l u_{l-1} + x_lᵀ R_l x_l) + ½ u_LᵀΦu_L
    over x,   with  u_l = A_l u_{l-1} + B_l x_l,  u_0 = 0 .

As a function of the ``x_l`` alone it is ``½ xᵀHx``: a linear-quadratic control problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Size, Tensor, nn

from curvop.direct.double_backward import gradients
from curvop.direct.linear import LinearStage
from curvop.direct.loss import LossExpansion
from curvop.direct.sequential import Layer, has_hooks
from curvop.direct.stages import DenseStage, ElementwiseStage, Stage
from curvop.operators import Blocks

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


@dataclass(frozen=True)
class NewtonSystem:
    """The stages and the Hessian of the loss.

    Attributes:
        stages: In order; there are no parameters before the first.
        loss_hessian: ``Φ``, the Hessian of the loss in the prediction.
        scales: For each stage the largest entry of the Hessian of the loss in its input,
            the parameters fixed.
        reaches: For each stage how far the parameters upstream move its input: the mean
            square of an entry of ``u`` for standard normal ``x``.
        memory_limit: Bytes that factors may take.
    """

    stages: tuple[Stage, ...]
    loss_hessian: Tensor
    scales: tuple[float, ...]
    reaches: tuple[float, ...]
    memory_limit: int

    def pack(self, M: Blocks) -> list[Tensor]:
        """Parameters ``[K, *n_i]`` as the ``x`` ``[K, p]`` of each stage."""
        blocks = iter(M)
        x = []
        for stage in self.stages:
            own = [next(blocks).detach().double() for _ in stage.shapes]
            x.append(stage.pack(own) if own else self.loss_hessian.new_zeros(len(M[0]), 0))
        return x

    def unpack(self, x: Sequence[Tensor]) -> Blocks:
        """The inverse of :meth:`pack`."""
        pairs = zip(self.stages, x, strict=True)
        return [block for stage, part in pairs for block in stage.unpack(part)]

    def product(self, x: Sequence[Tensor]) -> list[Tensor]:
        """``H x``."""
        u = x[0][:, :0]
        states = []
        for stage, part in zip(self.stages, x, strict=True):
            states.append(u)
            u = stage.jvp(u, part)
        v, out = u @ self.loss_hessian, []
        steps = zip(self.stages[::-1], states[::-1], x[::-1], strict=True)
        for stage, u, part in steps:
            v, Hx = stage.gradient(v, u, part)
            out.append(Hx)
        return out[::-1]


def newton_system(
    layers: Sequence[Layer],
    Z: Sequence[Tensor],
    loss: LossExpansion,
    *,
    is_hessian: bool,
    memory_limit: int,
) -> NewtonSystem:
    """Expand the layers from the loss upstream, and the adjoint with them.

    Args:
        layers: From the first that has parameters on.
        Z: Their inputs.
        loss: Its expansion.
        is_hessian: Whether second derivatives of the layers count; otherwise the matrix
            is the Gauss-Newton matrix.
        memory_limit: Bytes that factors may take.

    Raises:
        ValueError: If a derivative is not finite.
    """
    stages: list[Stage] = []
    scales = []
    Φ = loss.hessian
    λ, P = loss.gradient[None], Φ
    for i in reversed(range(len(layers))):
        stage = _expanded(layers[i], Z[i], λ.flatten() * is_hessian, moves=i > 0)
        λ, P = stage.vjp(λ), stage.congruence(P)
        scale = float(P.abs().max()) if P.numel() else 0.0
        if not math.isfinite(scale) or not bool(λ.isfinite().all()):
            raise ValueError(
                f"Expected finite derivatives, got NaN or infinity in {stage.name}. Is it "
                "differentiable at its input?"
            )
        stages.append(stage)
        scales.append(scale)
    return NewtonSystem(
        tuple(stages[::-1]), Φ, tuple(scales[::-1]), _reaches(stages[::-1], Φ), memory_limit
    )


def _reaches(stages: Sequence[Stage], like: Tensor) -> tuple[float, ...]:
    """By a few random vectors: the order of magnitude is enough."""
    draw = Generator().manual_seed(0)
    u = like.new_zeros(4, 0)
    reaches = []
    for stage in stages:
        reaches.append(float(u.square().mean()) if u.numel() else 0.0)
        x = torch.randn(4, stage.size, generator=draw, dtype=torch.float64)
        u = stage.jvp(u, x.to(like))
    return tuple(reaches)


def is_structured(layer: Layer) -> bool:
    """Whether the stage has no dense derivatives."""
    kind = type(layer.module)
    return (kind is nn.Linear or kind in _ELEMENTWISE) and not has_hooks(layer.module)


def _expanded(layer: Layer, z: Tensor, λ: Tensor, *, moves: bool) -> Stage:
    """A layer at its input ``z``; ``λ`` is the adjoint of its output, flat.

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
        (d,) = gradients(layer(z).sum(), [z], create_graph=True)
        (q,) = gradients(d.sum(), [z])
    return ElementwiseStage(layer.name, d.detach().flatten(), λ * q.flatten())


def _dense(layer: Layer, z: Tensor, λ: Tensor, moves: bool) -> DenseStage:
    with torch.enable_grad():
        x = [value.detach().requires_grad_() for value in layer.values]
        z = z.detach().requires_grad_(moves)
        inputs = [z, *x] if moves else x
        out = layer(z, x).flatten()
        J = _jacobian(out, inputs)
        N = J.shape[1]
        H = J.new_zeros(N, N)
        if bool(λ.any()):
            H = _jacobian(_flat(gradients(λ @ out, inputs, create_graph=True)), inputs)
    return DenseStage(layer.name, _shapes(layer), J, (H + H.T) / 2)


def _jacobian(outputs: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """``∂ outputs / ∂ inputs``, all flattened ``[a, N]``: one backward pass for each row.

    Not by ``torch.func``, whose ``hessian`` is wrong through norm layers
    (pytorch/functorch#534), and not batched, which group norm does not support.
    """
    rows = [_flat(gradients(o, inputs)) for o in outputs.flatten()]
    N = sum(x.numel() for x in inputs)
    return torch.stack(rows) if rows else outputs.new_zeros(0, N)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _shapes(layer: Layer) -> tuple[Size, ...]:
    return tuple(value.shape for value in layer.values)
