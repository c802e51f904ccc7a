"""Peak memory of a product, in a fresh process each."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import networks
import torch
from peers import BY_NAME

GRADIENT = "gradient"

# Freed memory goes back to the system at once, so that what a process holds is what its
# tensors take (glibc; elsewhere without effect).
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "PYTHONPATH": str(Path(__file__).parent),  # where the server finds what to preload
}
_SHARE = 0.85  # of the memory that is free: beyond, a run fails and its neighbours live


def peak_memory(
    network: str, matrix: str, contender: str, columns: int, device: str, dtype: str
) -> int:
    """Bytes at the peak above those held before, building the operator included.

    Model, data and the columns to multiply are held before; the result is not.
    """
    context = multiprocessing.get_context("forkserver")  # imports once, forks clean
    context.set_forkserver_preload(["peers"])
    os.environ.update(ENVIRONMENT)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        task = pool.submit(_peak, network, matrix, contender, columns, device, dtype)
        return task.result()


def limit_memory() -> None:
    """Fail where memory ends, rather than let the system choose whom to kill (Linux)."""
    if torch.cuda.is_available() or not Path("/proc/meminfo").exists():
        return  # CUDA reserves addresses without end
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + int(_SHARE * free * 1024), hard))


def _peak(
    network: str, matrix: str, contender: str, columns: int, device: str, dtype: str
) -> int:
    torch.set_num_threads(1)
    limit_memory()
    torch.manual_seed(0)
    w = networks.on(device)[network]().to(torch.device(device), getattr(torch, dtype))
    V = torch.randn(w.num_params, columns, device=device, dtype=w.params[0].dtype)
    w.gradient()  # libraries load and set up
    if contender != GRADIENT:
        _warm_up(contender, matrix, device)
    before = held(device)
    if contender == GRADIENT:
        w.gradient()
    else:
        BY_NAME[contender].products[matrix](w)(V)
    return highest(device) - before


def _warm_up(contender: str, matrix: str, device: str) -> None:
    """All imports and first times, with a tiny model."""
    tiny = networks.tiny().to(torch.device(device), torch.float32)
    V = torch.randn(tiny.num_params, 2, device=device)
    BY_NAME[contender].products[matrix](tiny)(V)


def held(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return highest(device)  # at least; no figure for the present elsewhere


def highest(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
