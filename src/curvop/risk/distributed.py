"""The sum over a ``torch.distributed`` group: one collective per product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.distributed
from torch import Tensor

ELSEWHERE = "Another rank of the process group has failed: its error says why."
NUM_MARKS = 8


def all_reduce(
    tensors: Sequence[Tensor],
    group: torch.distributed.ProcessGroup | None,
    *,
    same: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Each tensor summed over the ranks of ``group``; as it is without a group.

    All are sent in one buffer of the first tensor's type, at least single precision: there
    is one collective, and a count is as exact as the product that it divides.

    Args:
        tensors: What to sum.
        group: The ranks.
        same: Tensors that must be equal on every rank.

    Raises:
        ValueError: If they are not.
        RuntimeError: If another rank has failed, see :func:`failing_together`.
    """
    if group is None:
        return list(tensors)
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    marks = _marks(same, dtype, tensors[0].device)
    sent = (*tensors, marks, marks**2, marks.new_zeros(1))
    buffer = torch.cat([t.reshape(-1).to(dtype) for t in sent])
    torch.distributed.all_reduce(buffer, group=group)
    *parts, total, squares, failed = buffer.split([t.numel() for t in sent])
    # the same on every rank, hence so is the error
    if bool(failed != 0):
        raise RuntimeError(ELSEWHERE)
    squares = squares * torch.distributed.get_world_size(group)
    if bool((squares - total**2 > 1e-3 * squares).any()):
        raise ValueError(
            "Expected the same vector on every rank, got different ones. Draw it from a "
            "generator with the same seed everywhere, or broadcast it."
        )
    return [
        part.reshape(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)
    ]


@contextmanager
def failing_together(
    size: int,
    group: torch.distributed.ProcessGroup | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[None]:
    """Context for the work of a rank before an ``all_reduce``.

    The other ranks would wait forever for one that raises an error. It therefore takes part
    in the collective first, with a buffer that marks the error.

    Args:
        size: Numbers that will be summed.
        group: The ranks.
        dtype: Type of the first of them.
        device: Where they are.
    """
    try:
        yield
    except BaseException:
        if group is not None:
            dtype = torch.promote_types(dtype, torch.float32)
            buffer = torch.zeros(size + 2 * NUM_MARKS + 1, dtype=dtype, device=device)
            buffer[-1] = 1
            with suppress(RuntimeError):  # the others may be gone
                torch.distributed.all_reduce(buffer, group=group)
        raise


def _marks(same: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Partial sums of vectors, relative to their norm: different vectors have others."""
    sums = torch.zeros(NUM_MARKS, dtype=dtype, device=device)
    square = torch.zeros((), dtype=dtype, device=device)
    for t in same:
        flat = t.detach().reshape(-1)
        sums += torch.stack([flat[i::NUM_MARKS].sum(dtype=dtype) for i in range(NUM_MARKS)])
        square += torch.linalg.vector_norm(flat, dtype=dtype) ** 2
    return torch.where(square > 0, sums / square.sqrt(), sums)
