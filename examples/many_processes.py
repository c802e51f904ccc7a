"""One curvature matrix over data that several processes share.

What it shows: each rank holds every ``size``-th image of the digits, with a share of its
own size; ``process_group=`` makes products, eigenvalues and traces those of all data. The
first rank compares them with one operator over everything.

It ends in a table. Run it with ``torchrun --standalone --nproc_per_node=2
examples/many_processes.py``; ``python examples/many_processes.py`` is a world of one.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn

from curvop import (
    EFLinearOperator,
    Estimate,
    GGNLinearOperator,
    HessianLinearOperator,
    eigsh,
    trace,
)

OPERATORS = {
    "Hessian": HessianLinearOperator,
    "GGN": GGNLinearOperator,
    "empirical Fisher": EFLinearOperator,
}


def start() -> None:
    """The processes that torchrun started, or this one alone."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")  # "nccl" with GPUs
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def study(A: HessianLinearOperator) -> tuple[Tensor, Estimate]:
    """Eigenvalues and trace; the probes are seeded, so that all ranks draw the same."""
    L = A.linearize()
    probes = torch.Generator().manual_seed(0)
    return eigsh(L, k=3, which="LA", tol=1e-8).values, trace(L, generator=probes)


def main() -> None:
    """Compute on all ranks, compare and print on the first."""
    torch.set_num_threads(1)
    start()
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # every rank has the same parameters
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    params, loss_func = list(model.parameters()), nn.CrossEntropyLoss()
    digits = load_digits()
    X, y = torch.from_numpy(digits.data / 16), torch.from_numpy(digits.target)
    share = list(zip(X[rank::size].split(256), y[rank::size].split(256), strict=True))

    if rank == 0:
        print(f"{size} processes, the first with {len(X[::size])} of {len(X)} images\n")
        print(f"{'matrix':<18}{'three largest eigenvalues':<32}{'trace':<17}distance")
    for name, Operator in OPERATORS.items():
        together = Operator(model, loss_func, params, share, process_group=dist.group.WORLD)
        values, total = study(together)
        if rank == 0:
            alone, _ = study(Operator(model, loss_func, params, [(X, y)]))
            gap = (values - alone).abs().max() / alone.max()
            cells = "  ".join(f"{v:.6f}" for v in values)
            print(f"{name:<18}{cells:<32}{total!s:<17}{gap:.0e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
