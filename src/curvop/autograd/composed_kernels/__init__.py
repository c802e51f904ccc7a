"""Functions whose torch kernels have wrong derivatives or none, composed of others.

Each file has functions with the arguments of torch's own, and a table ``COMPOSED`` of
those that they replace. One that returns ``NotImplemented`` leaves the call to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

from curvop.autograd import composed_losses
from curvop.autograd.composed_kernels import (
    bags,
    determinants,
    elementwise,
    factorizations,
    logarithms,
    norms,
    scattering,
    sparse,
)

_COMPOSED: dict[Any, Callable[..., Any]] = {
    **bags.COMPOSED,
    **determinants.COMPOSED,
    **elementwise.COMPOSED,
    **factorizations.COMPOSED,
    **logarithms.COMPOSED,
    **norms.COMPOSED,
    **scattering.COMPOSED,
    **sparse.COMPOSED,
    **composed_losses.COMPOSED,
}


class ComposedKernels(TorchFunctionMode):
    """Context in which these functions replace the kernels of torch.

    >>> import torch
    >>> x = torch.zeros(1, requires_grad=True)
    >>> torch.autograd.functional.hessian(lambda x: torch.sinc(x).sum(), x)
    tensor([[nan]])
    >>> with ComposedKernels():  # -π² / 3
    ...     torch.autograd.functional.hessian(lambda x: torch.sinc(x).sum(), x)
    tensor([[-3.2899]])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the composed function, if there is one for these arguments."""
        kwargs = kwargs or {}
        if func in _COMPOSED:
            out = _COMPOSED[func](*args, **kwargs)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)
