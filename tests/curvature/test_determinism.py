"""The determinism check, and the generators that nobody may disturb."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    NonDeterministicError,
    TransposedJacobianLinearOperator,
)

from . import dense

N, C = 10, 2
X, Y = dense.normal(N, 3, seed=1), dense.normal(N, C, seed=2)
LOSS = nn.MSELoss()
CURVATURES = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
JACOBIANS = (JacobianLinearOperator, TransposedJacobianLinearOperator)
of_curvature = pytest.mark.parametrize("cls", CURVATURES)
of_all = pytest.mark.parametrize("cls", CURVATURES + JACOBIANS)
both_ways = pytest.mark.parametrize("way", ["func", "backpack"])
# batch norm in train mode is warned of, too; another test looks at the warning
batch_norm = pytest.mark.filterwarnings("ignore:BatchNorm1d:UserWarning")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What is random here is always the same."""
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)


def build(cls: Any, model: nn.Module, data: Any, **options: Any) -> Any:
    loss = () if cls in JACOBIANS else (LOSS,)
    return cls(model, *loss, list(model.parameters()), data, **options)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), **({"batch_size": 4} | options))


def network(*extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *extra, nn.Linear(4, C)).double()


def plain() -> nn.Module:
    return dense.Waves(3, (C,))


def multiply(A: Any) -> Tensor:
    product: Tensor = A @ torch.ones(A.shape[1], dtype=torch.float64)
    return product


# ------------------------------------------------------------------ what is found


@of_curvature
@both_ways
def test_dropout(cls: Any, way: str) -> None:
    message = r"differ in the loss.*Batch 0 differs in its loss.*dropout.*model\.eval\(\)"
    with pytest.raises(NonDeterministicError, match=message):
        build(cls, network(nn.Dropout(0.5)), loader(), differentiation=way)


@of_all
def test_dropout_in_evaluation_mode_is_fine(cls: Any) -> None:
    build(cls, network(nn.Dropout(0.5)).eval(), loader())


class DropoutAbove(nn.Module):
    """Dropout for some batches only."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.net = plain()
        self.start = start

    def forward(self, X: Tensor) -> Any:
        out = self.net(X)
        is_late = bool(X[0, 0] > self.start)
        return nn.functional.dropout(out) if is_late else out


@of_curvature
def test_first_batch_that_differs_is_named(cls: Any) -> None:
    start = float(X[0, 0])
    x = torch.where(torch.arange(N)[:, None] < 4, X.clamp_max(start), start + 1)
    data = dense.batches(x, Y, [range(4), range(4, 8), range(8, N)])
    with pytest.raises(NonDeterministicError, match="Batch 1 differs in its loss"):
        build(cls, DropoutAbove(start), data)


@of_curvature
@batch_norm
def test_batch_norm_with_shuffling(cls: Any) -> None:
    message = "Batch 0 differs in its data.*shuffling together with.*batch statistics"
    with pytest.raises(NonDeterministicError, match=message):
        build(cls, network(nn.BatchNorm1d(4)), loader(shuffle=True))


@of_curvature
def test_dropping_the_last_batch_with_shuffling(cls: Any) -> None:
    message = "Batch 0 differs in its data.*shuffling together with drop_last"
    with pytest.raises(NonDeterministicError, match=message):
        build(cls, plain(), loader(shuffle=True, drop_last=True))


@of_curvature
def test_random_sampler(cls: Any) -> None:
    sampler = WeightedRandomSampler(torch.ones(N), N)
    with pytest.raises(NonDeterministicError, match="Batch 0 differs in its data"):
        build(cls, plain(), loader(sampler=sampler))


class Augmented(Dataset[Any]):
    """Inputs with noise from some generator."""

    def __init__(self, noise: Callable[[], float]) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i] + self.noise(), Y[i]


def of_torch() -> float:
    return float(torch.randn(()))


NOISES = {"torch": of_torch, "numpy": numpy.random.rand, "random": random.random}


@of_all
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_random_augmentation(cls: Any, noise: Callable[[], float]) -> None:
    data = DataLoader(Augmented(noise), batch_size=5)
    with pytest.raises(NonDeterministicError, match=r"(B|b)atch 0"):
        build(cls, plain(), data)


@of_curvature
def test_random_augmentation_is_told_from_a_random_model(cls: Any) -> None:
    data = DataLoader(Augmented(of_torch), batch_size=5)
    with pytest.raises(NonDeterministicError, match=r"its data: .*random augmentation"):
        build(cls, plain(), data)


@of_curvature
def test_random_targets(cls: Any) -> None:
    class Noisy(Augmented):
        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return X[i], Y[i] + self.noise()

    data = DataLoader(Noisy(of_torch), batch_size=5)
    with pytest.raises(NonDeterministicError) as info:
        build(cls, plain(), data)
    assert "Batch 0 differs in its data" in str(info.value)


@of_curvature
def test_random_number_of_batches(cls: Any) -> None:
    class Growing:
        size = 1

        def __iter__(self) -> Iterator[Any]:
            self.size += 1
            return iter([(X, Y)] * self.size)

    with pytest.raises(NonDeterministicError, match=r"number of batches differs|differ"):
        build(cls, plain(), Growing())


class NoisyGradient(torch.autograd.Function):
    """The identity with a random slope."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.rand_like(grad)


@of_curvature
def test_random_gradient(cls: Any) -> None:
    net = plain()
    with pytest.raises(NonDeterministicError, match="Batch 0 differs in its gradient"):
        build(cls, net_with(net, NoisyGradient.apply), loader(), differentiation="backpack")


def net_with(net: nn.Module, function: Any) -> nn.Module:
    class With(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, X: Tensor) -> Any:
            return function(self.net(X))

    return With()


@pytest.mark.parametrize("cls", JACOBIANS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_jacobian_with_shuffling(cls: Any, drop_last: bool) -> None:
    message = "differ in batch 0.*rows of a Jacobian follow the data.*shuffle=False"
    with pytest.raises(NonDeterministicError, match=message):
        build(cls, plain(), loader(shuffle=True, drop_last=drop_last))


@pytest.mark.parametrize("cls", JACOBIANS)
def test_jacobian_with_dropout(cls: Any) -> None:
    with pytest.raises(NonDeterministicError, match=r"batch 0.*dropout.*model\.eval"):
        build(cls, network(nn.Dropout(0.5)), loader())


def test_error_is_a_runtime_error() -> None:
    assert issubclass(NonDeterministicError, RuntimeError)


# ------------------------------------------------------------------- what is fine


@of_curvature
@both_ways
def test_plain_shuffling_is_fine(cls: Any, way: str) -> None:
    data = loader(shuffle=True)
    A = build(cls, plain(), data, differentiation=way)
    B = build(cls, plain(), [(X, Y)], differentiation=way)
    assert dense.relative_error(A.to_dense(), B.to_dense()) <= 1e-8


@of_curvature
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shuffling_in_low_precision_is_fine(cls: Any, dtype: torch.dtype) -> None:
    data = DataLoader(TensorDataset(X.to(dtype), Y.to(dtype)), 3, shuffle=True)
    for _ in range(5):
        build(cls, plain().to(dtype), data)


@of_all
def test_without_check_nothing_is_raised(cls: Any) -> None:
    model = network(nn.Dropout(0.5))
    multiply(build(cls, model, loader(), check_deterministic=False))


@pytest.mark.parametrize("cls", CURVATURES)
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_in_train_mode_is_warned_of(cls: Any, affine: bool) -> None:
    norm = nn.BatchNorm1d(4, affine=affine)
    message = "BatchNorm1d '2' normalises with the statistics of each batch"
    with pytest.warns(UserWarning, match=message):
        build(cls, network(norm), loader())
    build(cls, network(norm), [(X, Y)])  # one batch: nothing to warn of
    build(cls, network(norm).eval(), loader())


# ------------------------------------------------------------------ the generators


def states(*generators: torch.Generator) -> list[bytes]:
    numpy_state = numpy.random.get_state(legacy=False)
    return [
        torch.get_rng_state().numpy().tobytes(),
        repr(random.getstate()).encode(),
        repr(numpy_state["state"]["pos"]).encode() + numpy_state["state"]["key"].tobytes(),
        *(g.get_state().numpy().tobytes() for g in generators),
    ]


def draw() -> float:
    return of_torch() + float(numpy.random.rand()) + random.random()


def loaders() -> Iterator[tuple[str, DataLoader[Any], list[torch.Generator]]]:
    """Data that draws from each generator there is."""
    yield "sequential", loader(), []
    yield "shuffled", loader(shuffle=True), []
    own = torch.Generator().manual_seed(5)
    yield "own generator", loader(shuffle=True, generator=own), [own]
    inner = torch.Generator().manual_seed(6)
    sampler = torch.utils.data.RandomSampler(X, generator=inner)
    yield "sampler", loader(sampler=sampler), [inner]
    batch = torch.Generator().manual_seed(7)
    random_batches = torch.utils.data.BatchSampler(
        torch.utils.data.RandomSampler(X, generator=batch), 4, drop_last=False
    )
    yield "batch sampler", loader(batch_sampler=random_batches, batch_size=1), [batch]
    yield "augmented", DataLoader(Augmented(draw), batch_size=5), []


LOADERS = [pytest.param(data, own, id=name) for name, data, own in loaders()]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("data", "own"), LOADERS)
@of_all
def test_generators_are_as_found(
    cls: Any, data: Any, own: list[torch.Generator], check: bool
) -> None:
    model = network(nn.Dropout(0.3))
    before = states(*own)
    try:
        A = build(cls, model, data, check_deterministic=check)
    except NonDeterministicError:
        assert check
    else:
        assert not check
        multiply(A)
    assert states(*own) == before


@of_curvature
def test_products_follow_each_other_from_the_same_state(cls: Any) -> None:
    """The user's own random numbers do not depend on curvop."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    A = build(cls, plain(), loader(shuffle=True))
    multiply(A)
    A.to_dense()
    A.to_scipy() @ numpy.ones(A.shape[1])
    assert torch.equal(torch.rand(3), expected)


@of_all
def test_generators_after_a_failure(cls: Any) -> None:
    def fail(X: Tensor) -> Tensor:
        draw()
        raise KeyError("in the middle")

    before = states()
    with pytest.raises(KeyError):
        build(cls, net_with(plain(), fail), loader())
    assert states() == before


@of_all
def test_dropout_repeats_without_check(cls: Any) -> None:
    """The generators are restored after each product: equal masks, equal products."""
    A = build(cls, network(nn.Dropout(0.5)), loader(), check_deterministic=False)
    product = multiply(A)
    assert torch.equal(multiply(A), product)
    both = A @ torch.ones(A.shape[1], 2, dtype=torch.float64)  # one mask for all columns
    assert dense.relative_error(both, product[:, None].expand(-1, 2)) <= 1e-8
