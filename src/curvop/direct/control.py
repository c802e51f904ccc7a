"""The Newton system of a chain as a linear-quadratic control problem.

    minimise  ½ Σ_l (u_{l-1}ᵀ Q_l u_{l-1} + 2 x_lᵀ S_l u_{l-1} + x_lᵀ R_l x_l) + ½ u_LᵀΦu_L
    over x,   with  u_l = A_l u_{l-1} + B_l x_l,  u_0 = 0 .

As a function of the ``x_l`` alone it is ``½ xᵀHx``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from curvop.direct.expansion import expand
from curvop.direct.layers import Layer
from curvop.direct.loss import TerminalCost
from curvop.direct.stages import Stage
from curvop.operators import Blocks


@dataclass(frozen=True)
class ControlProblem:
    """Stages and terminal cost.

    Attributes:
        stages: In order; there are no parameters before the first.
        terminal: ``Φ``, the Hessian of the loss in the prediction.
        scales: For each stage the largest entry of the Hessian of the loss in its input,
            the parameters fixed.
        reaches: For each stage how far the parameters upstream move its input: the mean
            square of an entry of ``u`` for standard normal ``x``.
        memory_limit: Bytes that factors may take.
    """

    stages: tuple[Stage, ...]
    terminal: Tensor
    scales: tuple[float, ...]
    reaches: tuple[float, ...]
    memory_limit: int

    def pack(self, M: Blocks) -> list[Tensor]:
        """Parameters ``[K, *n_i]`` as the ``x`` ``[K, p]`` of each stage."""
        blocks = iter(M)
        x = []
        for stage in self.stages:
            own = [next(blocks).detach().double() for _ in stage.shapes]
            x.append(stage.pack(own) if own else self.terminal.new_zeros(len(M[0]), 0))
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
            u = stage.push(u, part)
        v, out = u @ self.terminal, []
        steps = zip(self.stages[::-1], states[::-1], x[::-1], strict=True)
        for stage, u, part in steps:
            v, Hx = stage.gradient(v, u, part)
            out.append(Hx)
        return out[::-1]


def control_problem(
    layers: Sequence[Layer],
    Z: Sequence[Tensor],
    cost: TerminalCost,
    *,
    is_hessian: bool,
    memory_limit: int,
) -> ControlProblem:
    """Expand the layers from the loss upstream, and the adjoint with them.

    Args:
        layers: From the first that has parameters on.
        Z: Their inputs.
        cost: The expansion of the loss.
        is_hessian: Whether second derivatives of the layers count; otherwise the matrix
            is the Gauss-Newton matrix.
        memory_limit: Bytes that factors may take.

    Raises:
        ValueError: If a derivative is not finite.
    """
    stages: list[Stage] = []
    scales = []
    Φ = cost.hessian
    λ, P = cost.gradient[None], Φ
    for i in reversed(range(len(layers))):
        stage = expand(layers[i], Z[i], λ.flatten() * is_hessian, moves=i > 0)
        λ, P = stage.pull(λ), stage.congruence(P)
        scale = float(P.abs().max()) if P.numel() else 0.0
        if not math.isfinite(scale) or not bool(λ.isfinite().all()):
            raise ValueError(
                f"Expected finite derivatives, got NaN or infinity in {stage.name}. Is it "
                "differentiable at its input?"
            )
        stages.append(stage)
        scales.append(scale)
    return ControlProblem(
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
        u = stage.push(u, x.to(like))
    return tuple(reaches)
