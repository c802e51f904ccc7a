"""Products by central differences of first derivatives; nothing of curvop is used.

First derivatives are autograd's, from one backward pass, and are confirmed by differences
of values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.cases.problem import Problem
from tests.comparing import random

COLUMNS = 3
STEP = 2e-4


class UnsoundCaseError(AssertionError):
    """The case is no test: autograd's first derivative is not that of the values."""


@dataclass(frozen=True)
class Truth:
    """What products should be.

    Attributes:
        V: What is multiplied, ``[P, K]``.
        U: What is multiplied from the left, ``[N·C, K]``.
        hessian: ``∇²L V``.
        ggn: ``Jᵀ (∇²_f L) J V``.
        jacobian: ``J V``.
        transposed: ``Jᵀ U``.
    """

    V: Tensor
    U: Tensor
    hessian: Tensor
    ggn: Tensor
    jacobian: Tensor
    transposed: Tensor


def truth(problem: Problem) -> Truth:
    """All products of a problem.

    Raises:
        UnsoundCaseError: If first derivatives are not those of the values.
    """
    params = problem.tensors
    at = torch.cat([p.detach().flatten() for p in params])
    V = random(at.numel(), COLUMNS, seed=3)

    def outputs(theta: Tensor) -> Tensor:
        with Placed(problem, theta), torch.no_grad():
            return problem.predict()

    def gradient(theta: Tensor) -> Tensor:
        with Placed(problem, theta):
            return _gradient(problem.loss(problem.predict(), problem.y), params)

    def slope(prediction: Tensor) -> Tensor:
        leaf = prediction.detach().requires_grad_()
        return _gradient(problem.loss(leaf, problem.y), [leaf])

    with sdpa_kernel(SDPBackend.MATH):
        prediction = problem.predict()
        f = prediction.detach()
        J = torch.stack([_gradient(entry, params) for entry in prediction.flatten()])
        U = random(len(J), COLUMNS, seed=4)
        HJV = [differences(slope, f, u.view_as(f)) for u in (J @ V).T]
        HV = [differences(gradient, at, v) for v in V.T]
        _confirm(J @ V, torch.stack([differences(outputs, at, v) for v in V.T], 1))
        _confirm(gradient(at), slope(f) @ J)
    H, M = torch.stack(HV, 1), torch.stack(HJV, 1)
    return Truth(V, U, H, J.T @ M, J @ V, J.T @ U)


def differences(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """``∂f(x) v`` flattened, by central differences of sixth order."""
    first, second, third = (
        (f(x + h * v).flatten() - f(x - h * v).flatten()) / (2 * h)
        for h in (STEP, STEP / 2, STEP / 4)
    )
    coarse, fine = (4 * second - first) / 3, (4 * third - second) / 3
    return (16 * fine - coarse) / 15


class Placed:
    """Within this context the parameters have other values."""

    def __init__(self, problem: Problem, theta: Tensor) -> None:
        self.params, self.theta = problem.tensors, theta

    def __enter__(self) -> None:
        self.saved = [p.detach().clone() for p in self.params]
        self._write(self.theta.split([p.numel() for p in self.params]))

    def __exit__(self, *_: object) -> None:
        self._write(self.saved)

    def _write(self, values: object) -> None:
        with torch.no_grad():
            for p, value in zip(self.params, values, strict=True):
                p.copy_(value.view_as(p))


def _gradient(scalar: Tensor, inputs: list[Tensor]) -> Tensor:
    if not scalar.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in inputs])
    grads = torch.autograd.grad(
        scalar, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in grads]).detach()


def _confirm(derivative: Tensor, by_differences: Tensor) -> None:
    scale = by_differences.abs().max().clamp_min(1e-3)
    error = (derivative - by_differences).abs().max() / scale
    if not error < 1e-7:  # of hardsigmoid torch's is right in single precision
        raise UnsoundCaseError(f"first derivatives differ by {float(error):.1e}")
