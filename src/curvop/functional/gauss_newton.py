"""Gauss-Newton products of one model and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from curvop.curvature.kernels import differentiable_kernels
from curvop.curvature.nested import differentiable, refill
from curvop.functional.hvp import blocks_of
from curvop.functional.structure import Structure, gradient, pull, scalar, trainable


def gauss_newton_product(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    v: Structure,
    create_graph: bool = False,
) -> Any:
    r"""Multiply the Gauss-Newton matrix of ``loss_fn(model(x), y)`` with a vector.

    .. math:: G v = J^⊤ \, ∇²_f ℓ \, J v

    with the Jacobian ``J`` of the prediction ``f`` in the trainable parameters, which is
    never formed: ``J v`` is the derivative of ``u ↦ Jᵀ u``, which is linear (Schraudolph,
    "Fast curvature matrix-vector products for second-order gradient descent", 2002).

    Args:
        model: A module; its trainable parameters, in order, are the blocks.
        loss_fn: ``(prediction, y) ->`` a real scalar.
        x: Input of the model.
        y: Target.
        v: The vector, as for :func:`model_hvp`.
        create_graph: Whether the answer can be differentiated again.

    Returns:
        ``G v`` in the structure of ``v``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or the loss is no scalar.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> gauss_newton_product(model, nn.MSELoss(), x, y, [torch.tensor([[1.0, 0.0]])])
    [tensor([[2., 4.]])]
    """
    params = trainable(model)
    ps = list(params.values())
    blocks, answer = blocks_of(v, params)
    with torch.enable_grad(), differentiable_kernels():
        prediction = model(x)
        outputs = differentiable(prediction)
        u = [torch.zeros_like(o).requires_grad_() for o in outputs]
        Jt_u = pull(outputs, ps, u, create_graph=True)
        Jv = pull(Jt_u, u, blocks, create_graph=create_graph)
        # the loss as a function of the prediction alone, at the same value
        free = list(outputs) if create_graph else [o.detach() for o in outputs]
        free = [o if o.requires_grad else o.requires_grad_() for o in free]

        def loss() -> Tensor:
            return scalar(loss_fn(refill(prediction, free), y))

        g = gradient(loss, free, create_graph=True)
        HJv = pull(g, free, Jv, create_graph=create_graph)
        return answer(pull(outputs, ps, HJv, create_graph=create_graph))
