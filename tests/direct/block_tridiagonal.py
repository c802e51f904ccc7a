"""The published form of the inverse: one block-tridiagonal system.

A. Rahimi, "The Hessian of tall-skinny networks is easy to invert", arXiv 2601.06096. For
layers ``z_l = f_l(z_{l-1}; x_l)`` and the adjoints ``b_l`` of ``z_l``, with

    Dx = ∂f/∂x,  Dz = ∂f/∂z,  Dxx, Dzx, Dzz the second derivatives of b·f,

``M = I − subdiag(Dz)`` and ``P`` the shift by one layer, the Hessian is

    H = Dxx + Dxz P M⁻¹ Dx + (…)ᵀ + Dxᵀ M⁻ᵀ (Pᵀ Dzz P + Φ) M⁻¹ Dx .

``y = M⁻¹ Dx x`` and ``z = M⁻ᵀ (Pᵀ Dzx x + (Pᵀ Dzz P + Φ) y)`` as further unknowns turn
``(H + εI) x = g`` into a sparse symmetric system in ``(x, y, z)``; taken layer by layer
it is block-tridiagonal. Nothing here is meant to be fast, and nothing is shared with
``curvop.direct``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.cases.problem import Problem
from tests.cases.truth import gradient, rows


@dataclass(frozen=True)
class Layer:
    """Derivatives of one layer, flattened over the batch."""

    Dx: Tensor  # [a, p]
    Dz: Tensor  # [a, a_in]
    Dxx: Tensor  # [p, p]
    Dxz: Tensor  # [p, a_in]
    Dzz: Tensor  # [a_in, a_in]


def layers_of(problem: Problem) -> tuple[list[Layer], Tensor]:
    """All layers, and the Hessian ``Φ`` of the loss in the prediction."""
    z, inputs = problem.X, []
    for module in problem.model:
        inputs.append(z)
        z = module(z).detach()
    f = z.requires_grad_()
    b = gradient(problem.loss(f, problem.y), [f])
    Φ = rows(b, [f])
    layers = []
    for module, z in zip(reversed(problem.model), reversed(inputs), strict=True):
        layer, b = expanded(module, z, b.detach())
        layers.append(layer)
    return layers[::-1], Φ


def expanded(module: nn.Module, z: Tensor, b: Tensor) -> tuple[Layer, Tensor]:
    """One layer, and the adjoint of its input."""
    names = [name for name, _ in module.named_parameters()]
    x = [p.detach().requires_grad_() for p in module.parameters()]
    z = z.detach().requires_grad_()
    f = functional_call(module, dict(zip(names, x, strict=True)), (z,)).flatten()
    J, H = rows(f, [z, *x]), rows(gradient(b @ f, [z, *x]), [z, *x])
    a = z.numel()
    return Layer(J[:, a:], J[:, :a], H[a:, a:], H[a:, :a], H[:a, :a]), b @ J[:, :a]


def system(
    layers: list[Layer], Φ: Tensor, damping: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Diagonal blocks ``[p + 2a, p + 2a]``, and those that couple to the layer before.

    The rows of a layer, with ``y_0 = 0`` and ``z_{L+1} = 0``, are

        (Dxx + ε) x + Dxz y₋ + Dxᵀ z              = g
        (Dzz₊ or Φ) y + Dxz₊ᵀ x₊ − z + Dz₊ᵀ z₊     = 0
        Dx x + Dz y₋ − y                          = 0 .
    """
    diagonal, lower = [], []
    for i, layer in enumerate(layers):
        a, p = layer.Dx.shape
        eye = torch.eye(a).double()
        D = torch.zeros(p + 2 * a, p + 2 * a).double()
        x, y, z = slice(p), slice(p, p + a), slice(p + a, p + 2 * a)
        D[x, x] = layer.Dxx + damping * torch.eye(p).double()
        D[z, x], D[x, z] = layer.Dx, layer.Dx.T
        D[z, y], D[y, z] = -eye, -eye
        D[y, y] = layers[i + 1].Dzz if i + 1 < len(layers) else Φ
        diagonal.append(D)
        if i > 0:
            a_in, p_in = layers[i - 1].Dx.shape
            C = torch.zeros(p + 2 * a, p_in + 2 * a_in).double()
            y_in = slice(p_in, p_in + a_in)
            C[x, y_in] = layer.Dxz
            C[z, y_in] = layer.Dz
            lower.append(C)
    return diagonal, lower


def dense(diagonal: list[Tensor], lower: list[Tensor]) -> Tensor:
    """The whole system as one matrix, solved with pivoting across blocks."""
    A = torch.block_diag(*diagonal)
    sizes = torch.tensor([len(D) for D in diagonal])
    starts = (sizes.cumsum(0) - sizes).tolist()
    for i, C in enumerate(lower):
        row, column = starts[i + 1], starts[i]
        A[row : row + C.shape[0], column : column + C.shape[1]] = C
        A[column : column + C.shape[1], row : row + C.shape[0]] = C.T
    return A


def block_elimination(
    diagonal: list[Tensor], lower: list[Tensor], b: list[Tensor]
) -> list[Tensor]:
    """Solve block by block, from the first layer down: the published algorithm."""
    D, b = [diagonal[0]], [b[0], *b[1:]]
    for i, C in enumerate(lower):
        D.append(diagonal[i + 1] - C @ torch.linalg.solve(D[i], C.T))
        b[i + 1] = b[i + 1] - C @ torch.linalg.solve(D[i], b[i])
    x = [torch.linalg.solve(D[-1], b[-1])]
    for i in reversed(range(len(lower))):
        x.append(torch.linalg.solve(D[i], b[i] - lower[i].T @ x[-1]))
    return x[::-1]
