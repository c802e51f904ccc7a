"""Two processes, each with its share of the data, make one operator."""

from __future__ import annotations

import datetime
import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from curvop import (
    EFLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    KFACLinearOperator,
    NonDeterministicError,
)
from tests.curvature import dense

RANKS = 2
SECONDS = 60  # until processes that wait for each other are given up
N, C = 7, 3
X, Y = dense.normal(N, 2, seed=1), dense.normal(N, C, seed=2)
LABELS = torch.tensor([-1, 0, 2, 1, -1, 2, 1])
WEIGHT = torch.tensor([0.3, 2.0, 1.0], dtype=torch.float64)
ENTROPY = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=-1)
ONES = torch.ones(sum(p.numel() for p in dense.Waves(2, (C,)).parameters())).double()
OPERATORS = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
SHARES: dict[str, list[list[list[int]]]] = {
    "unequal": [[[0], [1, 5, 2]], [[3, 4, 6]]],
    "one is empty": [[[0, 1, 2], [3, 4], [5, 6]], []],
    "one is ignored": [[[4], [0]], [[1, 2], [3, 5, 6]]],
}
LINEARIZED = tuple(f"{cls.__name__} mean" for cls in OPERATORS)
COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather", "gather", "scatter")
COLLECTIVES += ("all_gather_object", "broadcast_object_list", "barrier", "reduce_scatter")


def setups() -> dict[str, tuple[Any, Any, Tensor, dict[str, Any]]]:
    """Operators by name: class, loss, targets, options."""
    table: dict[str, tuple[Any, Any, Tensor, dict[str, Any]]] = {}
    for cls in OPERATORS:
        name = cls.__name__
        for way in ("func", "backpack"):
            table[f"{name} {way}"] = cls, ENTROPY, LABELS, {"differentiation": way}
        table[f"{name} mean"] = cls, nn.MSELoss(), Y, {}
        table[f"{name} sum"] = cls, nn.MSELoss(reduction="sum"), Y, {}
        table[f"{name} blocks"] = cls, ENTROPY, LABELS, {"block_sizes": [1, 1]}
        unchecked = {"check_deterministic": False}
        table[f"{name} unchecked"] = cls, nn.HuberLoss(), Y, unchecked
    by_example = {"per": "example"}
    table["by example"] = EFLinearOperator, nn.MSELoss(), Y, by_example
    return table


def build(setup: str, parts: Any, **more: Any) -> Any:
    """One of the operators on some of the data."""
    cls, loss, y, options = setups()[setup]
    model = dense.Waves(2, (C,))
    data = dense.batches(X, y, parts)
    return cls(model, loss, list(model.parameters()), data, **options, **more)


# ---------------------------------------------------------------- in each process


class Counter:
    """Counts the collectives of ``torch.distributed``."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        for name in COLLECTIVES:
            setattr(dist, name, self.counting(name, getattr(dist, name)))

    def counting(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return original(*args, **kwargs)

        return collective

    def during(self, action: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
        """What an action returns, and the collectives that it called."""
        self.calls = []
        result = action()
        return result, list(self.calls)


def products(rank: int, counter: Counter) -> dict[Any, Any]:
    """All operators on all ways to share: their matrices, and their collectives."""
    found: dict[Any, Any] = {}
    for shares, parts in SHARES.items():
        for setup in setups():
            A, built = counter.during(
                lambda s=setup, p=parts: build(s, p[rank], process_group=dist.group.WORLD)
            )
            one = torch.ones(A.shape[1], dtype=torch.float64)
            found[shares, setup] = {
                "construction": built,
                "matrix": counter.during(lambda A=A: A.to_dense()),
                "vector": counter.during(lambda A=A, x=one: A @ x),
            }
            if setup in LINEARIZED:
                L, linearized = counter.during(A.linearize)
                found[shares, setup]["linearized"] = (
                    linearized,
                    *counter.during(L.to_dense),
                )
    return found


class Dropping(nn.Module):
    """Dropout in the second process only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense.Waves(2, (C,))

    def forward(self, X: Tensor) -> Any:
        out = self.net(X)
        return nn.functional.dropout(out) if dist.get_rank() == 1 else out


class Failing(nn.Module):
    """An error in the second process only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense.Waves(2, (C,))
        self.fails = dist.get_rank() == 1

    def forward(self, X: Tensor) -> Any:
        if self.fails:
            raise OSError("this disk is full")
        return self.net(X)


def failures(rank: int) -> dict[str, tuple[str, str]]:
    """What is wrong in one process must be said in both: nobody is left waiting."""
    model = dense.Waves(2, (C,))
    half = slice(None, 3) if rank == 0 else slice(3, None)
    bad = torch.where((torch.arange(N) == 5)[:, None], torch.nan, X)
    group = {"process_group": dist.group.WORLD}
    params = list(model.parameters())
    dropping = Dropping()
    nothing = torch.full((N,), -1)

    def attempt(action: Callable[[], Any]) -> tuple[str, str]:
        try:
            action()
        except Exception as error:
            return type(error).__name__, str(error)
        return "", ""

    def hessian(model: Any, params: Any, x: Tensor, y: Tensor, loss: Any) -> Any:
        return HessianLinearOperator(model, loss, params, [(x[half], y[half])], **group)

    mse = nn.MSELoss()
    H = hessian(model, params, X, Y, mse)
    generator = torch.Generator().manual_seed(rank)
    signs = torch.randint(2, (H.shape[0], 2), generator=generator).double() * 2 - 1
    normal = torch.randn(H.shape[0], generator=generator, dtype=torch.float64)
    return {
        "other signs": attempt(lambda: H @ signs),
        "other vectors": attempt(lambda: H @ normal),
        "other vectors, linearised": attempt(lambda: H.linearize() @ normal),
        "not finite": attempt(lambda: hessian(model, params, bad, Y, mse)),
        "random": attempt(
            lambda: hessian(dropping, list(dropping.parameters()), X, Y, mse)
        ),
        "nothing": attempt(lambda: hessian(model, params, X, nothing, ENTROPY)),
        **failures_of_one(rank, attempt),
        "nobody": attempt(lambda: HessianLinearOperator(model, mse, params, [], **group)),
    }


def failures_of_one(rank: int, attempt: Any) -> dict[str, tuple[str, str]]:
    """An error in one process ends what all do, and the next product is in step again."""
    half = slice(None, 3) if rank == 0 else slice(3, None)
    data, mse = [(X[half], Y[half])], nn.MSELoss()
    group: dict[str, Any] = {"process_group": dist.group.WORLD}
    unchecked = {"check_deterministic": False, **group}
    found = {}

    model = Failing()
    problem: Any = (model, mse, list(model.parameters()), data)
    found["at construction"] = attempt(lambda: GGNLinearOperator(*problem, **group))
    for name, cls in (
        ("Hessian", HessianLinearOperator),
        ("KFAC", KFACLinearOperator),
        ("diagonal", GGNDiagonalLinearOperator),
    ):
        found[name] = attempt(lambda c=cls: c(*problem, **unchecked) @ ONES)
    H = HessianLinearOperator(*problem, **unchecked)
    found["set-up"] = attempt(H.linearize)
    model.fails = False
    right = build("HessianLinearOperator mean", [range(N)])
    error = dense.relative_error(H @ ONES, right @ ONES)
    found["afterwards"] = ("right" if error <= 1e-8 else "wrong", "")
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
    found = {"products": products(rank, Counter()), "failures": failures(rank)}
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


# --------------------------------------------------------------- in the test process


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, all in one go."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(rank, str(folder)), daemon=True)
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    wait(processes)
    return [torch.load(folder / str(rank)) for rank in range(RANKS)]


def wait(processes: list[Any]) -> None:
    """For all processes to end well, and in time."""
    try:
        for process in processes:
            process.join(SECONDS)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * RANKS, f"exit codes {codes}; None: still waiting"
    finally:
        for process in processes:
            process.kill()


SETUPS = [(shares, setup) for shares in SHARES for setup in setups()]
each = pytest.mark.parametrize(("shares", "setup"), SETUPS)


@each
def test_equals_the_operator_of_one_process(
    found: list[Any], shares: str, setup: str
) -> None:
    expected = build(setup, [range(N)]).to_dense()
    for rank in range(RANKS):
        products = found[rank]["products"][shares, setup]
        matrix, _ = products["matrix"]
        vector, _ = products["vector"]
        assert dense.relative_error(matrix, expected) <= 1e-8
        assert dense.relative_error(vector, expected.sum(1)) <= 1e-8


@each
def test_one_collective_per_product(found: list[Any], shares: str, setup: str) -> None:
    is_checked = "unchecked" not in setup
    for rank in range(RANKS):
        products = found[rank]["products"][shares, setup]
        assert products["vector"][1] == ["all_reduce"]
        assert products["matrix"][1] == ["all_reduce"]
        assert products["construction"] == ["all_reduce"] * (2 * is_checked)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("setup", LINEARIZED)
def test_linearized(found: list[Any], shares: str, setup: str) -> None:
    expected = build(setup, [range(N)]).to_dense()
    for rank in range(RANKS):
        at_setup, matrix, at_product = found[rank]["products"][shares, setup]["linearized"]
        assert dense.relative_error(matrix, expected) <= 1e-8
        assert at_setup == ["all_reduce"]
        assert at_product == ["all_reduce"]


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("not finite", ValueError, "Expected a finite loss over the data, got nan"),
        ("other signs", ValueError, "the same vector on every rank"),
        ("other vectors", ValueError, "the same vector on every rank"),
        ("other vectors, linearised", ValueError, "the same vector on every rank"),
        ("random", NonDeterministicError, "Two passes over the data differ in the loss"),
        ("nothing", ValueError, "The loss averages over nothing"),
        ("nobody", ValueError, "The loss averages over nothing"),
    ],
)
def test_failures_are_told_in_each_process(
    found: list[Any], failure: str, error: type, message: str
) -> None:
    for rank in range(RANKS):
        kind, text = found[rank]["failures"][failure]
        assert (kind, message in text) == (error.__name__, True), text


@pytest.mark.parametrize(
    "where", ["at construction", "Hessian", "KFAC", "diagonal", "set-up"]
)
def test_error_in_one_process_ends_all(found: list[Any], where: str) -> None:
    assert found[1]["failures"][where] == ("OSError", "this disk is full")
    kind, text = found[0]["failures"][where]
    assert kind == "RuntimeError"
    assert "Another rank of the process group has failed" in text
    for rank in range(RANKS):
        assert found[rank]["failures"]["afterwards"] == ("right", "")


def test_shares_cover_the_data() -> None:
    for ranks in SHARES.values():
        assert sorted(i for parts in ranks for part in parts for i in part) == [*range(N)]


def test_empty_share_needs_a_group() -> None:
    with pytest.raises(ValueError, match="at least one batch of data, got none"):
        build("HessianLinearOperator mean", [])


def test_failing_processes_are_noticed() -> None:
    """What is tested here can fail."""
    process = multiprocessing.get_context("spawn").Process(target=int, args=("x",))
    process.start()
    with pytest.raises(AssertionError, match="exit codes"):
        wait([process])
