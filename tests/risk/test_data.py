"""Data of any kind: its structure, its place, and how often it is passed over."""

from __future__ import annotations

import types
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)
from tests.curvature import dense

N, C = 7, 2
X, Y = dense.normal(N, 3, seed=1), dense.normal(N, C, seed=2)
PARTS = [(0, 1), (2, 3, 4), (5, 6)]
CURVATURES = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
JACOBIANS = (JacobianLinearOperator, TransposedJacobianLinearOperator)
of_curvature = pytest.mark.parametrize("cls", CURVATURES)
of_all = pytest.mark.parametrize("cls", CURVATURES + JACOBIANS)
TRUTHS = {
    HessianLinearOperator: dense.hessian,
    GGNLinearOperator: dense.ggn,
}


def build(cls: Any, data: Any, model: Any = None, loss: Any = None, **options: Any) -> Any:
    model = dense.Waves(3, (C,)) if model is None else model
    losses = () if cls in JACOBIANS else (nn.MSELoss() if loss is None else loss,)
    return cls(model, *losses, list(model.parameters()), data, **options)


def expected(cls: Any) -> Tensor:
    """The dense matrix of MSE on ``X`` and ``Y``."""
    model = dense.Waves(3, (C,))
    params = list(model.parameters())
    if cls in JACOBIANS:
        J = dense.jacobian(model, params, X)
        return J if cls is JacobianLinearOperator else J.T
    if cls is EFLinearOperator:
        terms = nn.MSELoss(reduction="none")
        return dense.empirical_fisher(model, nn.MSELoss(), terms, params, X, Y)
    return TRUTHS[cls](model, nn.MSELoss(), params, X, Y)


def check(cls: Any, data: Any, **options: Any) -> None:
    A = build(cls, data, **options)
    assert dense.relative_error(A.to_dense(), expected(cls)) <= 1e-8


# ------------------------------------------------------------------------ sources


class Wrapped(Dataset[Any]):
    """A map-style dataset of single data."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i], Y[i]


class Streamed(IterableDataset[Any]):
    """An iterable dataset of single data, of unknown length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(X, Y, strict=True)


class Batched(Dataset[Any]):
    """A sequence of batches: ``__getitem__`` and ``__len__`` only."""

    def __len__(self) -> int:
        return len(PARTS)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        part = list(PARTS[i])  # IndexError ends the iteration
        return X[part], Y[part]


class Regenerated:
    """An iterable that makes its batches anew at each pass."""

    def __iter__(self) -> Iterator[Any]:
        for part in PARTS:
            yield X[list(part)], Y[list(part)]


SOURCES = {
    "list": dense.batches(X, Y, PARTS),
    "tuple": tuple(dense.batches(X, Y, PARTS)),
    "batches as lists": [list(batch) for batch in dense.batches(X, Y, PARTS)],
    "single batch": [(X, Y)],
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "loader of a dataset": DataLoader(Wrapped(), batch_size=2),
    "loader of a stream": DataLoader(Streamed(), batch_size=4),
    "iterable object": Regenerated(),
    "dict of batches": dict(enumerate(dense.batches(X, Y, PARTS))).values(),
}


@of_all
@pytest.mark.parametrize("data", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("num_data", [None, N])
def test_sources(cls: Any, data: Any, num_data: int | None) -> None:
    check(cls, data, num_data=num_data)
    check(cls, data, num_data=num_data, check_deterministic=False)


@of_all
def test_sequence_protocol(cls: Any) -> None:
    """Python iterates over whatever has ``__getitem__``."""
    check(cls, Batched())


# ------------------------------------------------------------- nested inputs, targets

Pair = namedtuple("Pair", ["left", "right"])


def split(X: Tensor) -> tuple[Tensor, Tensor]:
    return X[:, :1], X[:, 1:]


INPUTS = {
    "tuple": split,
    "list": lambda X: list(split(X)),
    "dict": lambda X: dict(zip("ab", split(X), strict=True)),
    "OrderedDict": lambda X: OrderedDict(zip("ab", split(X), strict=True)),
    "UserDict": lambda X: UserDict(zip("ab", split(X), strict=True)),
    "read-only mapping": lambda X: types.MappingProxyType(
        dict(zip("ab", split(X), strict=True))
    ),
    "namedtuple": lambda X: Pair(*split(X)),
    "nested": lambda X: {"inner": [split(X)[0], {"deep": (split(X)[1],)}], "flag": True},
}


def leaves(x: Any) -> list[Tensor]:
    """The tensors in a nest, in order."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Mapping):
        return [t for value in x.values() for t in leaves(value)]
    if isinstance(x, list | tuple):
        return [t for value in x for t in leaves(value)]
    return []


class OfNest(nn.Module):
    """The wave model on inputs in a nest, whose type it looks at."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.net = dense.Waves(3, (C,))
        self.kind = kind

    def forward(self, nest: Any) -> Any:
        assert type(nest) is self.kind or isinstance(nest, dict)
        return self.net(torch.cat(leaves(nest), 1))


@of_all
@pytest.mark.parametrize("nest", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("way", ["func", "backpack"])
def test_nested_inputs(cls: Any, nest: Any, way: str) -> None:
    data = [(nest(x), y) for x, y in dense.batches(X, Y, PARTS)]
    model = OfNest(type(nest(X)))
    check(cls, data, model=model, differentiation=way, batch_size_fn=size)
    check(cls, data, model=model, differentiation=way, num_data=N)


def size(nest: Any) -> int:
    return len(leaves(nest)[0])


@of_all
def test_inputs_of_any_type(cls: Any) -> None:
    """What is no tensor reaches the model as it is."""

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = dense.Waves(3, (C,))

        def forward(self, inputs: Any) -> Any:
            x, mode, scale = inputs
            assert mode == "double"
            assert isinstance(scale, float)
            return self.net(scale * x)

    data = [((x / 2, "double", 2.0), y) for x, y in dense.batches(X, Y, PARTS)]
    check(cls, data, model=Choosing(), num_data=N, batch_size_fn=lambda i: len(i[0]))


def parts(prediction: Tensor, y: Any, reduction: str = "mean") -> Tensor:
    """MSE with the targets in a nest."""
    target = torch.cat(leaves(y), 1)
    return nn.functional.mse_loss(prediction, target, reduction=reduction)


@of_curvature
@pytest.mark.parametrize("nest", [INPUTS[k] for k in ("tuple", "dict", "UserDict")])
@pytest.mark.parametrize("way", ["func", "backpack"])
def test_nested_targets(cls: Any, nest: Any, way: str) -> None:
    data = [(x, nest(torch.cat([y, y[:, :0]], 1))) for x, y in dense.batches(X, Y, PARTS)]
    check(cls, data, loss=parts, differentiation=way, num_data=N)


@pytest.mark.parametrize("cls", JACOBIANS)
def test_targets_may_be_missing(cls: Any) -> None:
    check(cls, [(x, None) for x, _ in dense.batches(X, Y, PARTS)], num_data=N)


def test_nothing_is_written_into_containers() -> None:
    batch = UserDict(a=X[:, :1], b=X[:, 1:])
    before = dict(batch)
    build(HessianLinearOperator, [(batch, Y)], model=OfNest(UserDict))
    assert {key: id(value) for key, value in batch.items()} == {
        key: id(value) for key, value in before.items()
    }


def moved(x: Any) -> Any:
    """Where curvop puts a batch: the device of the parameters."""
    model = dense.Waves(3, (C,)).to("meta")
    seen: list[Any] = []

    def forward(inputs: Any) -> Tensor:
        seen.append(inputs)
        raise LookupError

    with pytest.raises(LookupError):
        JacobianLinearOperator(
            forward, list(model.parameters()), [(x, Y)], differentiation="backpack"
        )
    return seen[0]


@pytest.mark.parametrize("nest", INPUTS.values(), ids=INPUTS)
def test_tensors_are_moved_to_the_device(nest: Any) -> None:
    there = moved(nest(X))
    assert [t.device.type for t in leaves(there)] == ["meta", "meta"]
    assert type(there) is type(nest(X)) or isinstance(there, dict)
    assert all(t.device.type == "cpu" for t in leaves(nest(X)))


# ------------------------------------------------------------------------- passes


class Counted:
    """Data that counts how often it is passed over, and how many batches it gave."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data
        self.passes = 0
        self.batches = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for batch in self.data:
            self.batches += 1
            yield batch


def counted() -> Counted:
    return Counted(dense.batches(X, Y, PARTS))


def quartic(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    terms = (prediction - y) ** 4
    return terms if reduction == "none" else getattr(terms, reduction)()


@of_all
@pytest.mark.parametrize("num_data", [None, N])
@pytest.mark.parametrize("loss", [nn.MSELoss(), quartic], ids=["torch", "callable"])
def test_construction_with_check_takes_two_passes(
    cls: Any, num_data: int | None, loss: Any
) -> None:
    data = counted()
    build(cls, data, loss=loss, num_data=num_data)
    assert data.passes <= 2
    assert data.batches <= 2 * len(PARTS)


@of_all
@pytest.mark.parametrize("loss", [nn.MSELoss(), quartic], ids=["torch", "callable"])
def test_construction_without_check(cls: Any, loss: Any) -> None:
    """No pass when ``num_data`` is given; the shape of a Jacobian takes one batch."""
    data = counted()
    build(cls, data, loss=loss, num_data=N, check_deterministic=False)
    assert data.batches == (1 if cls in JACOBIANS else 0)
    data = counted()
    build(cls, data, loss=loss, check_deterministic=False)
    assert data.passes <= 1


@of_all
@pytest.mark.parametrize("way", ["func", "backpack"])
def test_one_pass_per_product(cls: Any, way: str) -> None:
    data = counted()
    A = build(cls, data, differentiation=way)
    M, n = A.shape
    products = [
        lambda: A @ torch.ones(n, dtype=torch.float64),
        lambda: A @ torch.ones(n, 11, dtype=torch.float64),
        lambda: torch.ones(M, dtype=torch.float64) @ A,
        lambda: A.T @ torch.ones(M, 3, dtype=torch.float64),
        lambda: A.to_scipy() @ torch.ones(n, dtype=torch.float64).numpy(),
        lambda: A @ torch.ones(n, dtype=torch.complex128),
        lambda: A.to_dense(),
    ]
    for product in products:
        data.passes = data.batches = 0
        product()
        assert (data.passes, data.batches) == (1, len(PARTS))


@of_curvature
def test_one_pass_with_blocks(cls: Any) -> None:
    data = counted()
    A = build(cls, data, block_sizes=[1, 1])
    data.passes = 0
    A @ torch.ones(A.shape[1], dtype=torch.float64)
    assert data.passes == 1


@of_all
def test_no_pass_for_no_columns(cls: Any) -> None:
    data = counted()
    A = build(cls, data)
    data.passes = 0
    empty = A @ torch.ones(A.shape[1], 0, dtype=torch.float64)
    assert empty.shape == (A.shape[0], 0)


@of_all
def test_products_see_changed_parameters(cls: Any) -> None:
    """Nothing is kept between products."""
    model = dense.Waves(3, (C,))
    A = build(cls, SOURCES["list"], model=model)
    with torch.no_grad():
        model.weight.mul_(0.5)
    before = A.to_dense()
    assert dense.relative_error(before, expected(cls)) > 1e-3
    with torch.no_grad():
        model.weight.mul_(2)
    assert dense.relative_error(A.to_dense(), expected(cls)) <= 1e-8


# ------------------------------------------------------------------- progress bar


@of_all
def test_progressbar(cls: Any, capsys: pytest.CaptureFixture[str]) -> None:
    A = build(cls, SOURCES["list"], progressbar=True, check_deterministic=False, num_data=N)
    capsys.readouterr()
    A @ torch.ones(A.shape[1], dtype=torch.float64)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert {HessianLinearOperator: "Hessian", EFLinearOperator: "EF"}.get(cls, "") in shown


@of_all
def test_no_progressbar_by_default(cls: Any, capsys: pytest.CaptureFixture[str]) -> None:
    A = build(cls, SOURCES["list"])
    A @ torch.ones(A.shape[1], dtype=torch.float64)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
