"""Kernels that can be differentiated twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Value = TypeVar("Value")


def within(
    context: Callable[[], AbstractContextManager[Any]], f: Callable[..., Value]
) -> Callable[..., Value]:
    """The same function, evaluated within a context (of other kernels, for instance)."""

    def evaluate(*args: Any) -> Value:
        with context():
            return f(*args)

    return evaluate


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Run attention with kernels that have double backward and forward mode.

    The fused kernels of ``scaled_dot_product_attention`` have neither
    (pytorch#116350, #128971), nor has the inference path of ``MultiheadAttention`` and
    ``TransformerEncoderLayer``. Both settings are restored on exit; torch keeps them for
    the process, so that of several threads the last one to leave restores them.

    >>> with differentiable_kernels():
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    """
    with _attention():
        yield


class _Switch:
    """A setting of the process that several threads may need at once.

    Args:
        setting: Entered by the first thread, and left by the last one.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._inside = 0
        self._found: AbstractContextManager[Any]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._found = self._setting()
                self._found.__enter__()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._found.__exit__(None, None, None)


@contextmanager
def _composed_attention() -> Iterator[None]:
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def kernels_for(modules: Sequence[nn.Module]) -> Callable[[], AbstractContextManager[Any]]:
    """A context for the calls of a model; most models need none.

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
    with _recurrence(), _ConstantPadding():  # recurrent layers often follow an embedding
        yield


@contextmanager
def _composed_recurrence() -> Iterator[None]:
    libraries: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)
    found = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        yield
    finally:
        for library, enabled in zip(libraries, found, strict=True):
            library.enabled = enabled


_attention = _Switch(_composed_attention)
_recurrence = _Switch(_composed_recurrence)


class _ConstantPadding(TorchFunctionMode):
    """The padding row of an embedding is a constant.

    Reverse mode treats it so, forward mode does not (torch 2.13): without this, ``Jᵀ``
    would not be the transpose of ``J``.
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
