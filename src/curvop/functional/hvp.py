"""Hessian-vector products of one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvop.curvature.kernels import differentiable_kernels
from curvop.functional.structure import (
    Structure,
    gradient,
    like,
    parameters,
    pull,
    scalar,
    trainable,
    vector,
)


def exact_hvp(
    func: Callable[[], Tensor], params: Structure, v: Structure, create_graph: bool = False
) -> Any:
    r"""Multiply the Hessian of a function with a vector, exactly.

    .. math:: H v = ∇_θ ⟨∇_θ f(θ), v⟩

    by double backward (Pearlmutter, "Fast exact multiplication by the Hessian", 1994).

    Args:
        func: Closure over the parameters that returns a real scalar.
        params: The parameters: a tensor, or a list, tuple or dict of tensors.
        v: The vector: a tensor (one parameter), or blocks in the structure of ``params``.
        create_graph: Whether the answer can be differentiated again.

    Returns:
        ``H v`` in the structure of ``v``. Parameters that ``func`` does not use have zero
        rows and columns.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or ``func`` returns no scalar.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> exact_hvp(lambda: (w**3).sum(), w, torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    ps, vs = parameters(params), vector(v, params)
    with torch.enable_grad(), differentiable_kernels():
        g = gradient(func, ps, create_graph=True)
        return like(v, pull(g, ps, vs, create_graph=create_graph), params)


def approximate_hvp(
    func: Callable[[], Tensor],
    params: Structure,
    v: Structure,
    *,
    eps: float | None = None,
) -> Any:
    r"""Multiply the Hessian of a function with a vector by central differences.

    .. math:: H v ≈ \frac{∇f(θ + εv) - ∇f(θ - εv)}{2ε},
        \qquad ε = ε_0 \frac{1 + ‖θ‖}{‖v‖}

    For functions without a second derivative in autograd: two gradients, no graph of a
    gradient. The truncation error grows with ``ε²``, the rounding error with ``u / ε``
    for a unit roundoff ``u``: they balance at ``ε₀ = u^(1/3)``. The step is relative to
    both norms, so that the error does not depend on the scale of ``v`` (Pearlmutter,
    1994; Andrei, "Accelerated conjugate gradient algorithm with finite difference
    Hessian/vector product approximation", 2009).

    Args:
        func: Closure over the parameters that returns a real scalar.
        params: The parameters; moved during the call and restored bit for bit, also
            after an exception.
        v: The vector, as for :func:`exact_hvp`.
        eps: ``ε₀``; by default the cube root of the dtype's machine epsilon.

    Returns:
        ``H v`` approximately, in the structure of ``v``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or ``func`` returns no scalar.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True, dtype=torch.float64)
    >>> Hv = approximate_hvp(lambda: (w**3).sum(), w, torch.ones(2, dtype=torch.float64))
    >>> torch.allclose(Hv, torch.tensor([6.0, 12.0], dtype=torch.float64), rtol=1e-6)
    True
    """
    ps, vs = parameters(params), vector(v, params)
    if eps is not None and not eps > 0:
        raise ValueError(f"Expected a positive eps, got {eps}.")
    size = _norm(vs)
    if size == 0:
        return like(v, [torch.zeros_like(p) for p in ps], params)
    roundoff = max(torch.finfo(p.dtype).eps for p in ps)
    step = (eps or roundoff ** (1 / 3)) * (1 + _norm(ps)) / size
    kept = [p.detach().clone() for p in ps]
    try:
        with torch.enable_grad():
            ahead = _gradient_at(func, ps, kept, vs, step)
            behind = _gradient_at(func, ps, kept, vs, -step)
    finally:
        _write(ps, kept)
    Hv = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    return like(v, Hv, params)


def model_hvp(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    v: Structure,
    create_graph: bool = False,
) -> Any:
    """Multiply the Hessian of ``loss_fn(model(x), y)`` with a vector, exactly.

    Args:
        model: A module; its trainable parameters, in order, are the blocks.
        loss_fn: ``(prediction, y) ->`` a real scalar.
        x: Input of the model.
        y: Target.
        v: Blocks as a list or tuple, a dict by parameter name, or one tensor ``[P]``
            over all trainable parameters.
        create_graph: Whether the answer can be differentiated again.

    Returns:
        ``H v`` in the structure of ``v``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or the loss is no scalar.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> model_hvp(model, nn.MSELoss(), x, y, [torch.tensor([[1.0, 0.0]])])
    [tensor([[2., 4.]])]
    """
    params = trainable(model)
    blocks, answer = blocks_of(v, params)

    def loss() -> Tensor:
        return scalar(loss_fn(model(x), y))

    return answer(exact_hvp(loss, list(params.values()), blocks, create_graph))


def blocks_of(
    v: Structure, params: dict[str, Tensor]
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Blocks of a vector over a model's parameters, and how to answer in its form."""
    sizes = [p.numel() for p in params.values()]
    if isinstance(v, Tensor) and v.shape == (sum(sizes),):
        parts = zip(v.split(sizes), params.values(), strict=True)
        flat = [part.reshape(p.shape) for part, p in parts]
        return vector(flat, params), lambda out: torch.cat([b.reshape(-1) for b in out])
    if isinstance(v, Tensor) and len(sizes) > 1:
        raise ValueError(
            f"Expected v of shape ({sum(sizes)},), or a list of {len(sizes)} blocks, got a "
            f"tensor of shape {tuple(v.shape)}."
        )
    return vector(v, params), lambda out: like(v, out, params)


def _gradient_at(
    func: Callable[[], Tensor],
    ps: list[Tensor],
    origin: list[Tensor],
    vs: list[Tensor],
    step: float,
) -> tuple[Tensor, ...]:
    _write(ps, [p + step * b for p, b in zip(origin, vs, strict=True)])
    return gradient(func, ps, create_graph=False)


@torch.no_grad()
def _write(ps: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(ps, values, strict=True):
        p.copy_(value)


def _norm(blocks: Sequence[Tensor]) -> float:
    squares = [b.detach().double().square().sum() for b in blocks]
    return float(torch.stack(squares).sum().sqrt())
