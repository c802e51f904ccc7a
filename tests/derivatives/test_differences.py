"""Differences as a way of their own: how accurate they are, and what they say of it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
)
from curvop.derivatives import Differences, InaccurateError
from curvop.risk.parameters import as_parameters
from tests.cases.problem import seeded
from tests.comparing import error
from tests.curvature import dense

N, C = 12, 3
X, LABELS = dense.normal(N, 36, seed=1), dense.integers(C, N, seed=2)
LOSS = nn.CrossEntropyLoss()
ALL = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator, JacobianLinearOperator)
of_all = pytest.mark.parametrize("cls", ALL)


# ------------------------------------------------------------------ of one function


def difference(function: Any, x: Tensor, v: Tensor) -> tuple[Tensor, float]:
    """The derivative of a function along ``v``, and its error as estimated by itself."""
    by = Differences()
    at = as_parameters(lambda params, _: function(params["x"]), {"x": x})
    slopes = by.derivative(lambda there: [function(there.tensors[0])], at, [v[None]])
    return slopes[0][0], by.error


def test_of_one_function() -> None:
    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    before = x.clone()
    found, off = difference(lambda x: torch.stack([x.sin().sum(), x.prod()]), x, v)
    slopes = torch.stack([(x.cos() * v).sum(), x.prod() * (v / x).sum()])
    assert error(found, slopes) < 1e-8
    assert error(found, slopes) <= 10 * off
    assert torch.equal(x, before)


@pytest.mark.parametrize("function", [torch.sign, torch.abs, torch.relu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_do_not_converge_at_a_kink(function: Any, dtype: torch.dtype) -> None:
    """Though both steps may give the mean of the two sides."""
    x = torch.tensor([0.0, 1.0], dtype=dtype)
    with pytest.raises(InaccurateError, match="is there a kink"):
        difference(lambda x: (function(x) + x.sin()).sum()[None], x, torch.ones_like(x))


def test_single_precision_inside_does_not_pretend() -> None:
    x = torch.tensor([0.3, 1.0], dtype=torch.float64)
    with pytest.raises(InaccurateError, match="do not converge"):
        difference(lambda x: x.float().sin().double(), x, torch.ones_like(x))


def test_parameters_are_put_back_after_an_error() -> None:
    """Of a closure, whose own parameters are moved."""
    x = torch.ones(2, dtype=torch.float64)
    calls = []

    def breaks() -> Tensor:
        calls.append(x.clone())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return x.sum()[None]

    at = as_parameters(lambda X: breaks(), [x])
    with pytest.raises(KeyboardInterrupt):
        Differences().derivative(lambda there: [breaks()], at, [torch.ones(1, 2)])
    assert not torch.equal(calls[-1], torch.ones(2, dtype=torch.float64))
    assert torch.equal(x, torch.ones(2, dtype=torch.float64))


# --------------------------------------------------------------------- of operators


def perceptron(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(36, 5), activation(), nn.Linear(5, C))


def convolutional(activation: Callable[[], nn.Module], pool: nn.Module) -> nn.Module:
    image = nn.Unflatten(1, (1, 6, 6))
    return nn.Sequential(
        image, nn.Conv2d(1, 2, 3), activation(), pool, nn.Flatten(), nn.Linear(8, C)
    )


SMOOTH = {
    "tanh": lambda: perceptron(nn.Tanh),
    "norm": lambda: nn.Sequential(nn.Linear(36, 4), nn.LayerNorm(4), nn.Linear(4, C)),
    "convolution": lambda: convolutional(nn.SiLU, nn.AvgPool2d(2)),
}
KINKED = {
    "relu": lambda: perceptron(nn.ReLU),
    "max pooling": lambda: convolutional(nn.ReLU, nn.MaxPool2d(2)),
}
NETWORKS = SMOOTH | KINKED


@functools.lru_cache
def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return seeded(NETWORKS[name], dtype)


def build(cls: Any, model: Any, params: Any = None, **options: Any) -> Any:
    params = list(model.parameters()) if params is None else params
    inputs = X.to(params[0].dtype)
    data = dense.batches(inputs, LABELS, [range(8), range(8, N)])
    loss = () if cls is JacobianLinearOperator else (LOSS,)
    return cls(model, *loss, params, data, differentiation="differences", **options)


def truth(cls: Any, model: nn.Module, inputs: Tensor = X) -> Tensor:
    """The dense matrix by plain double backward, in double precision."""
    params = list(model.parameters())
    if cls is JacobianLinearOperator:
        return dense.jacobian(model, params, inputs)
    if cls is EFLinearOperator:
        terms = nn.CrossEntropyLoss(reduction="none")
        return dense.empirical_fisher(model, LOSS, terms, params, inputs, LABELS)
    matrix = dense.hessian if cls is HessianLinearOperator else dense.ggn
    return matrix(model, LOSS, params, inputs, LABELS)


def relative(got: Tensor, expected: Tensor) -> float:
    """Of the whole vector, as they estimate it."""
    return float((got.double() - expected).norm() / expected.norm())


@of_all
@pytest.mark.parametrize("name", NETWORKS)
def test_accuracy(cls: Any, name: str) -> None:
    model = network(name)
    A, B = build(cls, model), truth(cls, model)
    assert dense.relative_error(A.to_dense(), B) <= 1e-8
    assert A.relative_error <= 1e-6


@of_all
@pytest.mark.parametrize("name", NETWORKS)
def test_the_estimate_covers_the_error(cls: Any, name: str) -> None:
    model = network(name)
    B = truth(cls, model)
    for seed in range(8):
        A = build(cls, model, check_deterministic=False)
        v = dense.normal(B.shape[1], seed=seed)
        off = relative(A @ v, B @ v)
        assert 0 < A.relative_error <= 1e-6
        assert off <= 10 * A.relative_error


@of_all
@pytest.mark.parametrize("name", NETWORKS)
def test_modules_in_single_precision_are_converted(cls: Any, name: str) -> None:
    """Kinks do not matter; what is left is the rounding of the answer."""
    model = network(name, torch.float32)
    double = seeded(NETWORKS[name], torch.float64)
    double.load_state_dict(model.state_dict())
    A = build(cls, model)
    v = dense.normal(A.shape[1], seed=3).float()
    product = A @ v
    assert product.dtype is torch.float32
    exact = truth(cls, double, X.float().double()) @ v.double()
    assert relative(product, exact) <= 1e-6


class Stubborn(nn.Module):
    """Not to be copied."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, X: Tensor) -> Any:
        return self.inner(X)

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not to be copied")


def closure(name: str, dtype: torch.dtype) -> tuple[Callable[[Tensor], Any], list[Tensor]]:
    """A closure that is multiplied in place, and its parameters."""
    model = Stubborn(seeded(NETWORKS[name], dtype))
    return lambda X: model(X), list(model.parameters())


@of_all
@pytest.mark.parametrize("name", SMOOTH)
def test_closures_in_single_precision(cls: Any, name: str) -> None:
    """What cannot be copied is multiplied in its own precision.

    Norms over few features bend so much that it may not do: then that is said.
    """
    model, params = closure(name, torch.float32)
    double = seeded(NETWORKS[name], torch.float64)
    double.load_state_dict(network(name, torch.float32).state_dict())
    A = build(cls, model, params)
    B = truth(cls, double, X.float().double())
    for seed in range(4):
        v = dense.normal(A.shape[1], seed=seed).float()
        try:
            product = A @ v
        except InaccurateError as refusal:
            if name != "norm" or "convert to float64" not in str(refusal):
                raise
            continue
        off = relative(product, B @ v.double())
        assert off <= 1e-3
        assert off <= 10 * A.relative_error <= 1e-2


@of_all
def test_closures_in_single_precision_across_kinks_are_refused(cls: Any) -> None:
    model, params = closure("tanh", torch.float32)

    def kinked(X: Tensor) -> Any:
        return (model(X).remainder(0.004) - 0.002).abs()

    with pytest.raises(RuntimeError, match="convert to float64"):
        build(cls, kinked, params)


@of_all
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("form", ["module", "closure"])
def test_deterministic_and_put_back(cls: Any, name: str, form: str) -> None:
    """The same bits twice, and the parameters' bits as found."""
    model, params = closure(name, torch.float64)
    if form == "module":
        model = model.__closure__[0].cell_contents  # type: ignore[attr-defined]
    before = [(p, p.detach().clone(), p._version) for p in params]
    A = build(cls, model, params)
    v = dense.normal(A.shape[1], seed=3)
    assert torch.equal(A @ v, A @ v)
    V = dense.normal(A.shape[1], 3, seed=4)
    assert torch.equal(A @ V, A @ V)
    assert torch.equal((A @ V)[:, :1], A @ V[:, :1])
    for p, (q, bits, version) in zip(params, before, strict=True):
        assert p is q
        assert torch.equal(p, bits)
        assert p._version == version
        assert p.grad is None
        assert p.requires_grad


@pytest.mark.parametrize("cls", ALL[:3])
@pytest.mark.parametrize("name", NETWORKS)
def test_symmetric_to_accuracy(cls: Any, name: str) -> None:
    A = build(cls, network(name)).to_dense()
    assert float((A - A.T).norm() / A.norm()) <= 1e-8


@pytest.mark.parametrize("name", NETWORKS)
def test_transposed_jacobian(name: str) -> None:
    model = network(name)
    J, B = build(JacobianLinearOperator, model), truth(JacobianLinearOperator, model)
    U = dense.normal(B.shape[0], 2, seed=5)
    assert dense.relative_error(J.T @ U, B.T @ U) <= 1e-12


@of_all
def test_linear_in_the_vector(cls: Any) -> None:
    """Steps are relative: neither long nor short vectors lose digits."""
    A = build(cls, network("tanh"))
    v = dense.normal(A.shape[1], seed=3)
    for c in (1e-12, -1.0, 1e12):
        assert dense.relative_error(A @ (c * v), c * (A @ v)) <= 1e-8
    assert not (A @ (0 * v)).any()
    assert (A @ (torch.inf * v)).isnan().any()


@of_all
def test_what_a_product_says(cls: Any) -> None:
    """No word of warning: differences were asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A = build(cls, network("relu"))
        A @ dense.normal(A.shape[1])
    assert A.differentiation == "differences"
    assert f"differences proven to {A.proof.error:.0e}>" in repr(A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", [*ALL[:3]])
def test_sparse_gradients(cls: Any, dtype: torch.dtype) -> None:
    """Of an embedding; the rows that no token looks up are zero."""

    def model(sparse: bool, dtype: torch.dtype) -> nn.Module:
        return seeded(
            lambda: nn.Sequential(
                nn.Embedding(7, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, C)
            ),
            dtype,
        )

    tokens = dense.integers(6, N, 2, seed=4)
    sparse, double = model(True, dtype), model(False, torch.float64)
    double.load_state_dict(sparse.state_dict())
    params = list(double.parameters())
    data = [(tokens, LABELS)]
    A = cls(sparse, LOSS, list(sparse.parameters()), data, differentiation="differences")
    terms = functools.partial(F.cross_entropy, reduction="none")
    B = {
        HessianLinearOperator: lambda: dense.hessian(double, LOSS, params, *data[0]),
        GGNLinearOperator: lambda: dense.ggn(double, LOSS, params, *data[0]),
        EFLinearOperator: lambda: dense.empirical_fisher(
            double, LOSS, terms, params, *data[0]
        ),
    }[cls]()
    bound = 1e-8 if dtype is torch.float64 else 1e-6
    assert dense.relative_error(A.to_dense().double(), B) <= bound
    assert not A.to_dense()[18:21].any()
