"""Kernels of torch that are differentiated wrongly, or not at all, from others."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode


class ComposedKernels(TorchFunctionMode):
    """Within this context they are composed of functions with right derivatives."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What to compute in place of a call."""
        return func(*args, **(kwargs or {}))
