"""Hessian-vector products of one function, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from curvop.autograd import composed, gradient, graph_vjp
from curvop.functional.evaluation import differentiable_twice, evaluate, scalar
from curvop.functional.structure import Structure, parameters, trainable, vector


def exact_hvp(
    func: Callable[[], Tensor], params: Structure, v: Structure, create_graph: bool = False
) -> Any:
    r"""Multiply the Hessian of a function with a vector, exactly.

    .. math:: H v = ∇_θ ⟨∇_θ f(θ), v⟩

    by double backward (Pearlmutter, "Fast exact multiplication by the Hessian", 1994):
    about four times the cost of a gradient, and correct for every layer.

    Nothing is changed: neither ``.grad`` nor the random generators, nor the buffers of
    the modules that ``func`` refers to. A random ``func`` (dropout) therefore draws the
    same numbers at each call, unless the generators are used in between.

    Args:
        func: Closure over the parameters that returns a real scalar.
        params: The parameters: a tensor, or a list, tuple or dict of tensors.
        v: The vector: a list or tuple with one tensor a parameter; a dict, if ``params``
            is one; or one tensor, shaped as the only parameter, or ``[P]`` over all.
        create_graph: Whether the result can be differentiated again; norm layers are then
            composed of primitives, since torch's own have wrong third derivatives.

    Returns:
        ``H v`` in the structure of ``v``. Parameters that ``func`` does not use, or only
        linearly, have zero rows and columns.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or ``func`` does not return a finite scalar
            that depends on tensors.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> exact_hvp(lambda: (w**3).sum(), w, torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    named = parameters(params)
    ps, (vs, answer) = list(named.values()), vector(v, named)
    with differentiable_twice(ps, func, again=create_graph):
        g = gradient(evaluate(func), ps, create_graph=True)
        # the Hessian is symmetric: its product is a vjp of the gradient
        return answer(graph_vjp(g, ps, vs, create_graph=create_graph, keep=create_graph))


def model_hvp(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    v: Structure,
    create_graph: bool = False,
) -> Any:
    r"""Multiply the Hessian of ``loss_fn(model(x), y)`` with a vector, exactly.

    .. math:: H v = ∇_θ ⟨∇_θ ℓ(f_θ(x), y), v⟩

    as :func:`exact_hvp` does, with respect to the trainable parameters of the model.

    Args:
        model: A module, in train or eval mode as you want it differentiated. Those of its
            parameters that require a gradient are the blocks, in order.
        loss_fn: ``(prediction, y) ->`` a real scalar.
        x: Input of the model.
        y: Target.
        v: Blocks as a list or tuple, a dict by parameter name, or one tensor ``[P]``
            over all trainable parameters.
        create_graph: Whether the result can be differentiated again; norm layers are then
            composed of primitives, since torch's own have wrong third derivatives.

    Returns:
        ``H v`` in the structure of ``v``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or the loss is not a finite scalar.

    >>> import torch
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> model_hvp(model, nn.MSELoss(), x, y, [torch.tensor([[1.0, 0.0]])])
    [tensor([[2., 4.]])]
    >>> model_hvp(model, nn.MSELoss(), x, y, torch.tensor([1.0, 0.0]))
    tensor([2., 4.])
    """
    named = trainable(model)
    ps, (vs, answer) = list(named.values()), vector(v, named)
    with differentiable_twice(ps, model, loss_fn, again=create_graph):
        loss = scalar(composed(loss_fn)(model(x), y))
        g = gradient(loss, ps, create_graph=True)
        return answer(graph_vjp(g, ps, vs, create_graph=create_graph, keep=create_graph))
