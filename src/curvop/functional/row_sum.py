"""The row sums of one function's Hessian."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from curvop.curvature.nested import map_tensors
from curvop.functional.hvp import exact_hvp
from curvop.functional.structure import Structure, parameters

_STRUCTURES = (Tensor, list, tuple, Mapping)


def hessian_row_sum(f: Callable[..., Tensor], params: Structure) -> Any:
    r"""The row sums of a function's Hessian, by one product with the vector of ones.

    .. math:: r = H \mathbf{1}, \qquad r_i = \sum_j ∂²f / ∂θ_i ∂θ_j

    Where the Hessian is diagonal this is its diagonal; in general it is the lumped one,
    a preconditioner (Tsai et al., "Fast quasi-Newton algorithms for penalized
    reconstruction in emission tomography", 2018).

    Args:
        f: Closure over the parameters that returns a real scalar; or a function of
            ``params``, which then need not require a gradient.
        params: The parameters: a tensor, or a list, tuple or dict of tensors.

    Returns:
        ``H 1`` in the structure of ``params``.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If something does not fit, or ``f`` returns no finite scalar that
            depends on tensors.

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_row_sum(lambda: x[0] ** 2 + 2 * x[0] ** 2 * x[1] - 3 * x[1] ** 3, x)
    tensor([ 14., -32.])
    >>> hessian_row_sum(lambda t: (t**3).sum(), torch.tensor([1.0, 2.0]))
    tensor([ 6., 12.])
    """
    if isinstance(params, Iterable) and not isinstance(params, _STRUCTURES):
        params = list(params)  # an iterator can be read once
    closure = f
    if not _is_closure(f):
        params = map_tensors(_leaf, params)

        def closure() -> Tensor:
            return f(params)

    parameters(params)
    return exact_hvp(closure, params, map_tensors(torch.ones_like, params))


def _is_closure(f: Callable[..., Tensor]) -> bool:
    """Whether a function can be called without arguments."""
    try:
        inspect.signature(f).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_(t.is_floating_point())
