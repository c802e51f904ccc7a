"""The sum over a ``torch.distributed`` group: one collective per product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


def all_reduce(
    tensors: Sequence[Tensor],
    group: torch.distributed.ProcessGroup | None,
    *,
    same: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Each tensor summed over the ranks of ``group``; as it is without a group.

    All travel in one buffer of the first tensor's type, at least single precision: so
    there is one collective, and a count is as exact as the product that it divides.

    Args:
        tensors: What to sum.
        group: The ranks.
        same: What every rank must have alike.

    Raises:
        ValueError: If they do not.
    """
    if group is None:
        return list(tensors)
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    marks = _marks(same, dtype, tensors[0].device)
    sent = (*tensors, marks, marks**2)
    buffer = torch.cat([t.reshape(-1).to(dtype) for t in sent])
    torch.distributed.all_reduce(buffer, group=group)
    *parts, total, squares = buffer.split([t.numel() for t in sent])
    # the same on every rank, hence so is the error
    squares = squares * torch.distributed.get_world_size(group)
    if bool((squares - total**2 > 1e-3 * squares).any()):
        raise ValueError(
            "Expected the same vector on every rank, got different ones. Draw it from a "
            "generator with the same seed everywhere, or broadcast it."
        )
    return [
        part.reshape(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)
    ]


def _marks(same: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Some partial sums of vectors, in units of their norm: they tell random ones apart."""
    sums = torch.zeros(8, dtype=dtype, device=device)
    square = torch.zeros((), dtype=dtype, device=device)
    for t in same:
        flat = t.detach().reshape(-1)
        sums += torch.stack([flat[i::8].sum(dtype=dtype) for i in range(8)])
        square += torch.linalg.vector_norm(flat, dtype=dtype) ** 2
    return torch.where(square > 0, sums / square.sqrt(), sums)
