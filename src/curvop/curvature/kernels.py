"""Kernels that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


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
