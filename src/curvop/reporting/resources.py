"""What the machine allows: vectors in its memory, and states on its disk."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from curvop.checkpoint import EVERY
from curvop.operators import LinearOperator

SHARE_FOR_VECTORS = 0.5  # of the memory that is free
DISK = 2e8  # bytes per second
SMALL = 2**25  # bytes that are written in no time


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except OSError:  # not Linux
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 2**32


def room_for_vectors(A: LinearOperator) -> int:
    """Number of vectors that may be held at once."""
    free = SHARE_FOR_VECTORS * free_memory(A.device)
    return int(free / (A.shape[1] * A.dtype.itemsize))


def is_worth_saving(
    A: LinearOperator, num_vectors: int, seconds_per_product: float
) -> bool:
    """Whether writing a state takes no longer than what is computed between two."""
    size = num_vectors * A.shape[1] * A.dtype.itemsize
    between = EVERY * seconds_per_product
    return size <= max(SMALL, DISK * between)


def settled(file: Path, choice: int) -> tuple[Path, int]:
    """The choice that an earlier run's state was written with, or else this one."""
    for old in file.parent.glob(f"{file.stem}-*.pt"):
        return old, int(old.stem.rpartition("-")[2])
    return file.with_name(f"{file.stem}-{choice}.pt"), choice


def is_saved(file: Path) -> bool:
    """Whether a section can go on from a state."""
    return any(file.parent.glob(f"{file.stem}-*.pt"))


def forget(file: Path) -> None:
    """Remove the states of a section that is done."""
    for old in file.parent.glob(f"{file.stem}-*.pt"):
        old.unlink()
