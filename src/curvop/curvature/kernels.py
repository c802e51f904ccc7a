"""Kernels that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Run attention with kernels that have double backward and forward mode.

    The fused kernels of ``scaled_dot_product_attention`` have neither
    (pytorch#116350, #128971), nor has the inference path of ``MultiheadAttention`` and
    ``TransformerEncoderLayer``. Both settings are restored on exit.

    >>> with differentiable_kernels():
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def kernels_for(modules: Sequence[nn.Module]) -> Callable[[], AbstractContextManager[Any]]:
    """What the calls of a model need besides; most need nothing.

    Args:
        modules: The modules that the model calls.
    """
    layers = [m for module in modules for m in module.modules()]
    if any(isinstance(m, nn.RNNBase) for m in layers):
        return _differentiable_recurrence
    if any(isinstance(m, nn.Embedding) and m.padding_idx is not None for m in layers):
        return _ConstantPadding
    return nullcontext


@contextmanager
def _differentiable_recurrence() -> Iterator[None]:
    """Without cuDNN's kernels (no double backward) and oneDNN's (no forward mode)."""
    libraries: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)
    found = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        with _ConstantPadding():  # recurrent layers often follow an embedding
            yield
    finally:
        for library, enabled in zip(libraries, found, strict=True):
            library.enabled = enabled


class _ConstantPadding(TorchFunctionMode):
    """The padding row of an embedding is a constant.

    Reverse mode knows that, forward mode does not (torch 2.13): ``Jᵀ`` would not be the
    transpose of ``J``.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is not F.embedding or kwargs.get("padding_idx") is None:
            return out
        tokens, weight = args
        is_padding = tokens == kwargs["padding_idx"] % len(weight)
        return torch.where(is_padding[..., None], out.detach(), out)
