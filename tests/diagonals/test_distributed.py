"""Two processes, each with its share of the data, have one diagonal."""

from __future__ import annotations

import datetime
import multiprocessing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from curvop import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)
from tests.cases.problem import classes, cross_entropy, normal, seeded
from tests.comparing import TOLERANCE, error
from tests.curvature import dense

RANKS = 2
SECONDS = 60
SHARES = {
    "unequal": ([[0], [3, 1]], [[2, 4, 5]]),
    "one is empty": ([], [[0, 1, 2, 3, 4, 5]]),
}
DIAGONALS: Any = (
    GGNDiagonalLinearOperator,
    EFDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)


def diagonal(cls: Any, parts: Any, **options: Any) -> torch.Tensor:
    model = seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.float64
    )
    X, y = normal(torch.float64, 6, 3), classes(3, 6, ignore=True)
    data = dense.batches(X, y, parts)
    loss = cross_entropy(torch.float64)
    D = cls(model, loss, list(model.parameters()), data, **options)
    found: torch.Tensor = D.diagonal()
    return found


def work(rank: int, folder: str) -> None:
    """What one process does; it leaves its findings in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=SECONDS / 2),
    )
    found = {
        (name, cls.__name__): diagonal(cls, shares[rank], process_group=dist.group.WORLD)
        for name, shares in SHARES.items()
        for cls in DIAGONALS
    }
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_each_rank_has_the_diagonal_over_all_data(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(rank, str(tmp_path)), daemon=True)
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode == 0
    for rank in range(RANKS):
        found = torch.load(tmp_path / str(rank))
        assert len(found) == len(SHARES) * len(DIAGONALS)
        for (_, name), d in found.items():
            cls = next(c for c in DIAGONALS if c.__name__ == name)
            assert error(d, diagonal(cls, [range(6)])) <= TOLERANCE
