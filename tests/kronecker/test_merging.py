"""Small batches are put together where that changes nothing, and shared by ranks."""

from __future__ import annotations

import datetime
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.cases.problem import seeded
from tests.comparing import error, random

F64 = torch.float64
LOSS = nn.CrossEntropyLoss(torch.tensor([0.5, 2.0, 1.2], dtype=F64), ignore_index=-100)
X, Y = random(12, 3), torch.tensor([0, 1, 2, -100, 2, 1, 0, 1, -100, 1, 2, 0])
both = pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])


class Counting(nn.Module):
    """Notes the number of data of each forward pass."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)
        self.norm = norm or nn.Identity()
        self.seen: list[int] = []

    def forward(self, X: Tensor) -> Tensor:
        self.seen.append(len(X))
        return self.last(self.norm(self.first(X)).tanh())


def batches(size: int) -> list[Any]:
    return list(zip(X.split(size), Y.split(size), strict=True))


def build(kind: Any, model: nn.Module, data: Any, **options: Any) -> Any:
    return kind(
        model, LOSS, list(model.parameters()), data, check_deterministic=False, **options
    )


@both
@pytest.mark.parametrize("fisher", ["type-2", "mc", "empirical"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_fewer_passes_and_the_same_matrix(kind: Any, fisher: Any, size: int) -> None:
    model = seeded(Counting, F64)
    right = build(kind, model, batches(12), fisher_type=fisher).to_dense()
    model.seen.clear()
    K = build(kind, model, batches(size), fisher_type=fisher)
    assert error(K.to_dense(), right) <= 1e-10
    # the first alone, then the others together, after a look at both ways
    assert model.seen[:4] == [size, 12 - size, size, 12 - size]


def test_not_where_it_would_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvop.kronecker.merging.NUMBERS", 7 * 5)  # five data
    model = seeded(Counting, F64)
    build(KFACLinearOperator, model, batches(2))
    assert max(model.seen) == 4


def test_batch_statistics_keep_batches_apart() -> None:
    """Each batch has its own statistics: the inputs of the last layer tell."""
    model = seeded(lambda: Counting(nn.BatchNorm1d(4)), F64).train()
    parts = [build(KFACLinearOperator, model, [b]) for b in batches(4)]
    A = torch.stack([right_factor(K, "last.weight") for K in parts]).mean(0)
    K = build(KFACLinearOperator, model, batches(4))
    assert error(right_factor(K, "last.weight"), A) <= 1e-10


def right_factor(K: Any, name: str) -> Tensor:
    block = K.factors.blocks[K.block_names.index((name,))]
    return block.right[0]


@both
def test_models_of_one_batch_size(kind: Any) -> None:
    class Fixed(Counting):
        def forward(self, X: Tensor) -> Tensor:
            return super().forward(X.reshape(4, 3))

    model = seeded(Fixed, F64)
    right = build(kind, seeded(Counting, F64), batches(12)).to_dense()
    assert error(build(kind, model, batches(4)).to_dense(), right) <= 1e-10


def test_different_kinds_of_batches_stay_apart() -> None:
    """Sequences of unequal length: each position counts once, each target by its weight."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, X: Tensor) -> Tensor:
            return self.layer(X).tanh().mean(1)

    model = seeded(Sequence, F64)
    lengths = (1, 2, 2, 3, 2, 2, 1, 1)
    data = [(random(2, T, 3, seed=i), Y[i : i + 2]) for i, T in enumerate(lengths)]
    alone = [build(KFACLinearOperator, model, [batch]).factors.blocks[0] for batch in data]
    K = build(KFACLinearOperator, model, data)
    counts = torch.tensor([2.0 * T for T in lengths], dtype=F64)
    A = sum(c * b.right for c, b in zip(counts, alone, strict=True)) / counts.sum()
    assert error(K.factors.blocks[0].right, A) <= 1e-10
    Z = [float(LOSS.weight[y[y >= 0]].sum()) for _, y in data]
    B = sum(z * b.left for z, b in zip(Z, alone, strict=True)) / sum(Z)
    assert error(K.factors.blocks[0].left, B) <= 1e-10


# ------------------------------------------------------------------------- ranks


def shared(rank: int, empty: bool) -> list[Any]:
    parts = batches(5)
    if empty:
        return parts if rank == 0 else []
    return parts[:1] if rank == 0 else parts[1:]


def work(rank: int, folder: str) -> None:
    """What one process does; it leaves its findings in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    model, group = seeded(Counting, F64), dist.group.WORLD
    found: dict[str, Any] = {}
    for kind in (KFACLinearOperator, EKFACLinearOperator):
        args = (model, LOSS, list(model.parameters()), shared(rank, False))
        found[kind.__name__] = kind(*args, process_group=group).to_dense()
    try:
        build(KFACLinearOperator, model, shared(rank, True), process_group=group)
    except ValueError as e:
        found["empty"] = str(e)
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_ranks_make_one_operator(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(rank, str(tmp_path)), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    model = seeded(Counting, F64)
    for rank in range(2):
        found = torch.load(tmp_path / str(rank))
        for kind in (KFACLinearOperator, EKFACLinearOperator):
            right = build(kind, model, batches(12)).to_dense()
            assert error(found[kind.__name__], right) <= 1e-10
        assert "at least one batch" in found["empty"]
