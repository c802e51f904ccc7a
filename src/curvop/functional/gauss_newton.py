"""Gauss-Newton products of one model and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from curvop.autograd import composed, gradient, graph_vjp
from curvop.functional.evaluation import differentiable_twice, scalar
from curvop.functional.structure import Structure, trainable, vector
from curvop.risk import differentiable, refill


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
        model: A module, in train or eval mode as you want it differentiated. Those of its
            parameters that require a gradient are the blocks, in order.
        loss_fn: ``(prediction, y) ->`` a real scalar.
        x: Input of the model.
        y: Target.
        v: The vector, as for :func:`model_hvp`.
        create_graph: Whether the result can be differentiated again; norm layers are then
            composed of primitives, since torch's own have wrong third derivatives.

    Returns:
        ``G v`` in the structure of ``v``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or the loss is not a finite scalar.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> gauss_newton_product(model, nn.MSELoss(), x, y, [torch.tensor([[1.0, 0.0]])])
    [tensor([[2., 4.]])]
    """
    named = trainable(model)
    ps, (vs, answer) = list(named.values()), vector(v, named)
    further = {"create_graph": create_graph, "keep": create_graph}
    with differentiable_twice(ps, model, loss_fn, again=create_graph):
        prediction = model(x)
        outputs = differentiable(prediction)
        u = [torch.zeros_like(o).requires_grad_() for o in outputs]
        Jt_u = graph_vjp(outputs, ps, u, create_graph=True, keep=True)
        Jv = graph_vjp(Jt_u, u, vs, **further)

        # the loss as a function of the prediction: reverse over reverse, since losses
        # such as mse_loss have no forward mode over their backward
        f = [o if create_graph and o.requires_grad else _leaf(o) for o in outputs]
        copies = [o.clone() for o in f]  # a loss may write to its argument
        loss = scalar(composed(loss_fn)(refill(prediction, copies), y))
        g = gradient(loss, f, create_graph=True)
        HJv = graph_vjp(g, f, Jv, **further)
        return answer(graph_vjp(outputs, ps, HJv, **further))


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()
