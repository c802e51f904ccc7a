"""The sum over a ``torch.distributed`` group: one collective per product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


def all_reduce(
    tensors: Sequence[Tensor], group: torch.distributed.ProcessGroup | None
) -> list[Tensor]:
    """Each tensor summed over the ranks of ``group``; as it is without a group.

    All travel in one buffer of the first tensor's type, at least single precision: so
    there is one collective, and a count is as exact as the product that it divides.
    """
    if group is None:
        return list(tensors)
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    buffer = torch.cat([t.reshape(-1).to(dtype) for t in tensors])
    torch.distributed.all_reduce(buffer, group=group)
    parts = buffer.split([t.numel() for t in tensors])
    return [
        part.reshape(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)
    ]
