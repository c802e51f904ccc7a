"""The row sums of one function's Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvop.functional.hvp import exact_hvp
from curvop.functional.structure import Structure, like, parameters


def hessian_row_sum(f: Callable[[], Tensor], params: Structure) -> Any:
    r"""The row sums of a function's Hessian, by one product with the vector of ones.

    .. math:: r = H \mathbf{1}, \qquad r_i = \sum_j ∂²f / ∂θ_i ∂θ_j

    Where the Hessian is diagonal this is its diagonal; in general it is the lumped one.

    Args:
        f: Closure over the parameters that returns a real scalar.
        params: The parameters: a tensor, or a list, tuple or dict of tensors.

    Returns:
        ``H 1`` in the structure of ``params``.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If something does not fit, or ``f`` returns no scalar.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_row_sum(lambda: x[0] ** 2 + 2 * x[0] ** 2 * x[1] - 3 * x[1] ** 3, x)
    tensor([ 14., -32.])
    """
    ones = [torch.ones_like(p) for p in parameters(params)]
    return exact_hvp(f, params, like(params, ones, params))
