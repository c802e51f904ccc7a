"""Dense matrices by plain double backward, on all data at once.

Double backward may itself be wrong: ``test_truth.py`` confirms them by differences.

Nothing of curvop is used here (but the samples of the sampled Fisher), and nothing of
``torch.func``, which is silently wrong through norm layers (pytorch/functorch#534).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvop.curvature.output_factor import output_factor
from curvop.risk.losses import as_loss
from tests.cases.problem import Problem, flat_terms, leaves_of, refilled

MC_SAMPLES = 3


def gradient(output: Tensor, inputs: Sequence[Tensor], keep: bool = True) -> Tensor:
    """``∇ output``, flattened, with its graph where it is differentiated again."""
    if not output.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in inputs])
    grads = torch.autograd.grad(
        output,
        inputs,
        create_graph=keep,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([g.flatten() for g in grads])


def rows(outputs: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The Jacobian of ``outputs``, one backward pass for each row."""
    return torch.stack([gradient(o, inputs, keep=False) for o in outputs.flatten()])


def _second(scalar: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    return rows(gradient(scalar, inputs), inputs)


def hessian(problem: Problem) -> Tensor:
    """``∇²L``."""
    loss = problem.loss(problem.predict(), problem.y)
    return _second(loss, problem.tensors)


def ggn(problem: Problem) -> Tensor:
    """``Jᵀ (∇²_f L) J``."""
    prediction = problem.predict()
    parts = leaves_of(prediction)
    J = torch.cat([rows(part, problem.tensors) for part in parts])
    leaves = [part.detach().requires_grad_() for part in parts]
    loss = problem.loss(refilled(prediction, leaves), problem.y)
    return J.T @ _second(loss, leaves) @ J


def sampled_fisher(problem: Problem) -> Tensor:
    """``Jᵀ S Sᵀ J / Z``; the samples ``S`` are curvop's, with tests of their own."""
    prediction = problem.predict()
    loss = as_loss(problem.loss)
    S = output_factor(
        loss,
        prediction,
        problem.y,
        num_data=sum(problem.cuts),
        kind="mc",
        mc_samples=MC_SAMPLES,
        X=problem.X,
    ).columns(slice(None))
    V = rows(prediction, problem.tensors).T @ _columns(S, sum(problem.cuts))
    summed = loss.reduction == "sum"
    Z = 1.0 if summed else loss.total(prediction, problem.y) / loss_of(problem)
    return V @ V.T / Z


def loss_of(problem: Problem) -> Tensor:
    """The loss of all data."""
    value: Tensor = problem.loss(problem.predict(), problem.y)
    return value


def _columns(S: Tensor, N: int) -> Tensor:
    """``[R, *prediction]`` as ``[outputs, N R]``: one column for each datum."""
    each = S.reshape(S.shape[0], N, -1)
    return torch.cat([torch.block_diag(*s[:, :, None]) for s in each], 1)


def empirical_fisher(problem: Problem, per: str) -> Tensor:
    """``Σ gₙ gₙᵀ / Z``, with ``Z`` the ratio of the summed terms and the loss."""
    prediction = problem.predict()
    terms = flat_terms(problem.loss)(prediction, problem.y)
    Z = (terms.sum() / problem.loss(prediction, problem.y)).item()
    if per == "example":
        terms = torch.stack([t.sum() for t in terms])
    elif per == "output" and isinstance(prediction, Tensor):
        is_elementwise = terms.shape == prediction.shape and terms.ndim > 1
        terms = terms.sum(-1) if is_elementwise else terms
    G = rows(terms, problem.tensors)
    return G.T @ G / Z


def jacobian(problem: Problem) -> Tensor:
    """``∂f/∂θ``, ``[N·C, P]``."""
    return rows(problem.predict(), problem.tensors)


def dense(problem: Problem, matrix: str) -> Tensor:
    """The matrix of this name."""
    functions: dict[str, Any] = {
        "hessian": hessian,
        "ggn": ggn,
        "ggn-mc": sampled_fisher,
        "ef-term": lambda p: empirical_fisher(p, "term"),
        "ef-example": lambda p: empirical_fisher(p, "example"),
        "ef-output": lambda p: empirical_fisher(p, "output"),
        "jacobian": jacobian,
        "transposed_jacobian": lambda p: jacobian(p).T,
    }
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no double backward
        return functions[matrix](problem).detach()


def block_diagonal(A: Tensor, sizes: Sequence[int]) -> Tensor:
    """The diagonal blocks of ``A`` of these sizes, zero elsewhere."""
    return A * torch.block_diag(*(A.new_ones(s, s) for s in sizes))
