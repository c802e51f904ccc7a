"""Dense matrices of a risk by plain double backward: the truth of this folder.

Nothing of curvop is used here, and nothing of ``torch.func``, which is wrong through
norm layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Any, Any], Tensor]


def rows(outputs: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The Jacobian of ``outputs`` by ``inputs``, row by row, with graph."""
    jacobian = [
        torch.cat([g.flatten() for g in _gradient(output, inputs)])
        for output in outputs.flatten()
    ]
    return torch.stack(jacobian)


def _gradient(output: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not output.requires_grad:
        return tuple(torch.zeros_like(p) for p in inputs)
    return torch.autograd.grad(
        output, inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )


def hessian(model: Any, loss: Loss, params: Sequence[Tensor], X: Any, y: Any) -> Tensor:
    """``∇²L`` of one batch."""
    (gradient,) = rows(loss(model(X), y)[None], params)
    return rows(gradient, params).detach()


def ggn(model: Any, loss: Loss, params: Sequence[Tensor], X: Any, y: Any) -> Tensor:
    """``Jᵀ (∇²_f L) J`` of one batch; the prediction is a tensor or a tuple of them."""
    outputs = model(X)
    is_tensor = isinstance(outputs, Tensor)
    parts = [outputs] if is_tensor else list(outputs)
    J = torch.cat([rows(part, params) for part in parts]).detach()
    leaves = [part.detach().requires_grad_() for part in parts]
    value = loss(leaves[0] if is_tensor else tuple(leaves), y)
    (gradient,) = rows(value[None], leaves)
    return J.T @ rows(gradient, leaves).detach() @ J


def empirical_fisher(
    model: Any, loss: Loss, terms: Loss, params: Sequence[Tensor], X: Any, y: Any
) -> Tensor:
    """``Σ gₙ gₙᵀ / Z`` of one batch, a gradient for each vector of the prediction.

    ``Z`` is read off the loss and its terms.
    """
    prediction = model(X)
    t = terms(prediction, y)
    Z = (t.sum() / loss(prediction, y)).detach()
    if isinstance(prediction, Tensor) and t.shape == prediction.shape and t.ndim > 1:
        t = t.sum(-1)
    G = rows(t, params).detach()
    return G.T @ G / Z


def jacobian(model: Any, params: Sequence[Tensor], X: Any) -> Tensor:
    """``∂f/∂θ`` of one batch, ``[N·C, P]``."""
    return rows(model(X), params).detach()


def relative_error(A: Tensor, B: Tensor) -> float:
    """Largest difference over the largest entry of the truth ``B``; absolute if B = 0."""
    assert A.shape == B.shape
    assert bool(torch.isfinite(A).all())
    scale = float(B.abs().max())
    return float((A.to(B) - B).abs().max()) / (scale or 1.0)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector."""
    return torch.cat([t.detach().flatten() for t in tensors])


def pick(nested: Any, index: Any) -> Any:
    """The data at some positions of the leading axis, in any nest."""
    if isinstance(nested, Tensor):
        return nested[index]
    if isinstance(nested, Mapping):
        return type(nested)({key: pick(value, index) for key, value in nested.items()})
    return type(nested)(pick(value, index) for value in nested)


def batches(X: Any, y: Any, parts: Sequence[Sequence[int]]) -> list[tuple[Any, Any]]:
    """Mini-batches by the positions of their data."""
    return [(pick(X, list(part)), pick(y, list(part))) for part in parts]


def block_diagonal(A: Tensor, sizes: Sequence[int]) -> Tensor:
    """The diagonal blocks of ``A`` of these sizes, zero elsewhere."""
    mask = torch.block_diag(*(torch.ones(s, s, dtype=A.dtype) for s in sizes))
    return A * mask


class Waves(nn.Module):
    """``link(sin(X W + b))`` with data on the leading axis: few parameters, no zeros.

    Args:
        features: Entries of one datum.
        shape: Shape of the prediction for one datum.
        link: Applied to the prediction last.
    """

    def __init__(
        self,
        features: int,
        shape: Sequence[int] = (),
        link: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        outputs = torch.Size(shape).numel()
        generator = torch.Generator().manual_seed(outputs)
        self.weight = nn.Parameter(
            torch.randn(features, outputs, generator=generator, dtype=torch.float64)
        )
        self.bias = nn.Parameter(
            torch.randn(outputs, generator=generator, dtype=torch.float64)
        )
        self.shape = tuple(shape)
        self.link = link

    def forward(self, X: Tensor) -> Any:
        out = (X @ self.weight + self.bias).sin().reshape(X.shape[0], *self.shape)
        return out if self.link is None else self.link(out)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in double precision, always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    """Uniform integers below ``high``, always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, shape, generator=generator)
