"""The row sums of one function's Hessian."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from curvop.autograd import gradient, graph_vjp
from curvop.functional.evaluation import as_found, evaluate
from curvop.functional.hvp import exact_hvp
from curvop.functional.structure import Structure, parameters, vector
from curvop.risk import map_tensors, tensors

_STRUCTURES = (Tensor, list, tuple, Mapping)


def hessian_row_sum(
    f: Tensor | Callable[..., Tensor], params: Structure, blocks: bool = False
) -> Any:
    r"""The row sums of a function's Hessian, by one product with the vector of ones.

    .. math:: r = H \mathbf{1}, \qquad r_i = \sum_j ∂²f / ∂θ_i ∂θ_j

    If the Hessian is diagonal, this is its diagonal; in general it is the lumped diagonal,
    a preconditioner (Tsai et al., "Fast quasi-Newton algorithms for penalized
    reconstruction in emission tomography", 2018).

    Args:
        f: The real scalar itself, whose graph is kept; or a closure over the parameters
            that returns it; or a function of ``params``, which then need not require a
            gradient. Functions are called with kernels that can be differentiated twice:
            for models with attention, pass a function.
        params: The parameters: a tensor, or a list, tuple or dict of tensors.
        blocks: Whether to return the structure of ``params``.

    Returns:
        ``H 1``, one tensor ``[P]`` over all parameters in their order; or the blocks.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If something does not fit, ``f`` is not a finite scalar that depends on
            tensors, or its graph is known to have a wrong second derivative.

    >>> import torch
    >>> x, y = (torch.tensor(t, requires_grad=True) for t in (1.0, 2.0))
    >>> hessian_row_sum(x**2 + 2 * x**2 * y - 3 * y**3, [x, y])
    tensor([ 14., -32.])
    >>> hessian_row_sum(lambda: x**2 + 2 * x**2 * y - 3 * y**3, [x, y], blocks=True)
    [tensor(14.), tensor(-32.)]
    >>> hessian_row_sum(lambda t: (t**3).sum(), torch.tensor([1.0, 2.0]))
    tensor([ 6., 12.])
    """
    if isinstance(params, Iterable) and not isinstance(params, _STRUCTURES):
        params = list(params)  # an iterator can be read once
    if isinstance(f, Tensor):
        rows = _of_graph(f, params)
    elif callable(f):
        rows = _of_function(f, params)
    else:
        raise TypeError(
            "Expected f as a scalar tensor, or a function that returns one, got "
            f"{type(f).__name__}."
        )
    return rows if blocks else torch.cat([row.reshape(-1) for row in tensors(rows)])


def _of_graph(f: Tensor, params: Structure) -> Any:
    """``H 1`` of a scalar that was computed already."""
    named = parameters(params)
    ps = list(named.values())
    ones, answer = vector(map_tensors(torch.ones_like, params), named)
    with as_found(ps):
        _check_graph(evaluate(lambda: f))
        g = gradient(f, ps, create_graph=True)
        return answer(graph_vjp(g, ps, ones, create_graph=False, keep=True))


def _of_function(f: Callable[..., Tensor], params: Structure) -> Any:
    """``H 1`` of a closure, or of a function of the parameters."""
    closure = f
    if not _is_closure(f):
        params = map_tensors(_leaf, params)

        def closure() -> Tensor:
            return f(params)

    parameters(params)
    return exact_hvp(closure, params, map_tensors(torch.ones_like, params))


def _check_graph(f: Tensor) -> None:
    """Refuse a graph with a kernel whose double backward is wrong without an error.

    Raises:
        ValueError: If it has that of weight norm (pytorch#198017).
    """
    seen, open_ = set(), [f.grad_fn]
    while open_:
        node = open_.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        open_ += [before for before, _ in node.next_functions]
        if node.name().startswith("WeightNormInterface"):
            raise ValueError(
                "The graph of f has torch's kernel of weight norm, whose second derivative "
                "is wrong. Compute the weight as g * v / v.norm(), with norms along the "
                "same axes."
            )


def _is_closure(f: Callable[..., Tensor]) -> bool:
    """Whether a function can be called without arguments."""
    try:
        inspect.signature(f).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_(t.is_floating_point())
