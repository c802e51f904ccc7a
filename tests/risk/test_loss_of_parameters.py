"""Losses that depend on parameters by themselves: those of the model, or their own."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import (
    ChainHessianLinearOperator,
    EFDiagonalLinearOperator,
    EFLinearOperator,
    GGNLinearOperator,
    HessianDiagonalLinearOperator,
    HessianLinearOperator,
    IdentityLinearOperator,
    preflight,
)
from curvop.risk.gradient import loss_and_gradient
from tests.curvature import dense
from tests.curvature.doors import (
    JACOBIANS,
    KRONECKER,
    LABELS,
    OF_PREDICTION,
    PARTS,
    X,
    agree,
    build,
    differences,
    network,
)

DATA = dense.batches(X, LABELS, PARTS)
CE = nn.CrossEntropyLoss()
DECAY = 0.3
checks = pytest.mark.parametrize("check_deterministic", [True, False])
of_prediction = pytest.mark.parametrize("cls", OF_PREDICTION)
MESSAGE = (
    r"by the prediction alone.*also depends on the parameters '?(0|0\.weight|loss\.\w+)'?"
)


def decay(params: Any) -> Tensor:
    total: Tensor = sum(p.square().sum() for p in params)
    return DECAY * total


# Ways in which a loss comes by the parameters, each of ``(module) -> loss``.


def of_module(net: Any) -> Any:
    return lambda f, y: F.cross_entropy(f, y) + decay(net.parameters())


def of_tensors(net: Any) -> Any:
    params = list(net.parameters())
    return lambda f, y: F.cross_entropy(f, y) + decay(params)


def of_layers(net: Any) -> Any:
    layers = {"first": net[0], "last": [net[2]]}
    return lambda f, y: (
        F.cross_entropy(f, y)
        + decay([*layers["first"].parameters(), *layers["last"][0].parameters()])
    )


def by_partial(net: Any) -> Any:
    def loss(f: Tensor, y: Tensor, module: Any) -> Tensor:
        return F.cross_entropy(f, y) + decay(module.parameters())

    return functools.partial(loss, module=net)


def by_default(net: Any) -> Any:
    def loss(f: Tensor, y: Tensor, *, module: Any = net) -> Tensor:
        return F.cross_entropy(f, y) + decay(module.parameters())

    return loss


class Decayed(nn.Module):
    """A loss that holds the model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y) + decay(self.net.parameters())


class Trainer:
    """Something that holds both, and has the loss as a method."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def loss(self, f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y) + decay(self.net.parameters())


def by_method(net: Any) -> Any:
    return Trainer(net).loss


LOSSES = {
    "module": of_module,
    "tensors": of_tensors,
    "layers": of_layers,
    "partial": by_partial,
    "default": by_default,
    "class": Decayed,
    "method": by_method,
}
of_readings = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


def hessian(net: Any) -> Tensor:
    """By differences of the gradient of the whole risk."""
    params = list(net.parameters())

    def gradient() -> Any:
        total = F.cross_entropy(net(X), LABELS) + decay(params)
        return torch.autograd.grad(total, params)

    return differences(gradient, params)


@checks
@of_readings
@pytest.mark.parametrize("data", [DATA, [(X, LABELS)]], ids=["batches", "one batch"])
def test_hessian(make: Any, data: Any, check_deterministic: bool) -> None:
    net = network()
    options = {"reduction": "mean", "check_deterministic": check_deterministic}
    H = HessianLinearOperator(net, make(net), list(net.parameters()), data, **options)
    agree(H, hessian(net), 1e-7)
    right = dense.hessian(
        net,
        lambda f, y: CE(f, y) + decay(net.parameters()),
        list(net.parameters()),
        X,
        LABELS,
    )
    agree(H, right)
    agree(H.linearize(), right)
    v = dense.normal(H.shape[0], seed=9)
    assert dense.relative_error(H @ v, right @ v) <= 1e-8


@of_readings
@pytest.mark.parametrize("way", ["backpack", "differences"])
def test_ways(make: Any, way: Any) -> None:
    net = network()
    H = HessianLinearOperator(
        net, make(net), net, DATA, reduction="mean", differentiation=way
    )
    agree(H, hessian(net), 1e-6)


def test_func_is_impossible() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"'func' needs a module.*loss.*refers to"):
        HessianLinearOperator(
            net, of_module(net), net, DATA, reduction="mean", differentiation="func"
        )


@of_readings
@pytest.mark.parametrize("form", ["dict", "frozen", "part", "closure", "functional"])
def test_forms_of_model_and_parameters(make: Any, form: str) -> None:
    net = network()
    params, model = list(net.parameters()), net
    loss = make(net)
    given: Any = params
    if form == "dict":
        given = dict(net.named_parameters())
    if form == "frozen":
        net.requires_grad_(False)
    if form == "part":
        given = params = params[1:3]
    if form == "closure":
        model = lambda x: net(x)  # type: ignore[assignment]  # noqa: E731
    if form == "functional":
        given = dict(net.named_parameters())

        def model(p: Any, x: Tensor) -> Any:  # type: ignore[no-redef]
            return torch.func.functional_call(net, p, x)

    H = HessianLinearOperator(model, loss, given, DATA, reduction="mean")
    A = H.to_dense()
    assert all(p.requires_grad == (form != "frozen") for p in net.parameters())
    net.requires_grad_(True)
    right = dense.hessian(
        net, lambda f, y: CE(f, y) + decay(net.parameters()), params, X, LABELS
    )
    assert dense.relative_error(A, right) <= 1e-8


@checks
@of_readings
def test_block_diagonal(make: Any, check_deterministic: bool) -> None:
    net = network()
    H = HessianLinearOperator(
        net,
        make(net),
        net,
        DATA,
        reduction="mean",
        block_sizes=[1, 3],
        check_deterministic=check_deterministic,
    )
    sizes = [12, 3 + 9 + 3]
    agree(H, dense.block_diagonal(hessian(net), sizes), 1e-7)


@checks
@of_readings
def test_diagonal_of_the_hessian(make: Any, check_deterministic: bool) -> None:
    net = network()
    D = HessianDiagonalLinearOperator(
        net, make(net), net, DATA, reduction="mean", check_deterministic=check_deterministic
    )
    agree(D, hessian(net).diag().diag(), 1e-7)


def test_diagonal_of_a_piecewise_linear_network() -> None:
    """The blocks of the Hessian are those of the GGN, but for the decay."""
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    D = HessianDiagonalLinearOperator(net, of_module(net), net, DATA, reduction="mean")
    agree(D, hessian(net).diag().diag(), 1e-6)


def test_gradient() -> None:
    net = network()
    H = HessianLinearOperator(net, of_module(net), net, DATA, reduction="mean")
    loss, gradient = loss_and_gradient(H.risk)
    right = CE(net(X), LABELS) + decay(net.parameters())
    assert abs(loss - float(right.detach())) <= 1e-12
    flat = dense.flat(torch.autograd.grad(right, list(net.parameters())))
    assert dense.relative_error(gradient, flat) <= 1e-12


# ------------------------------------------------------------------ empirical Fisher


def with_terms(net: Any) -> Any:
    def loss(f: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(f, y, reduction=reduction) + decay(net.parameters())

    return loss


@checks
def test_empirical_fisher(check_deterministic: bool) -> None:
    """Each term has the gradient of the decay as well."""
    net = network()
    loss = with_terms(net)
    params = list(net.parameters())
    right = dense.empirical_fisher(
        net, loss, lambda f, y: loss(f, y, "none"), params, X, LABELS
    )
    options = {"check_deterministic": check_deterministic}
    E = EFLinearOperator(net, loss, params, DATA, **options)
    agree(E, right)
    agree(E.linearize(), right)
    D = EFDiagonalLinearOperator(net, loss, params, DATA, **options)
    agree(D, right.diag().diag())
    with pytest.raises(ValueError, match=MESSAGE):
        E.factor()


# ----------------------------------------------------- matrices of the prediction alone


@of_prediction
@checks
@of_readings
def test_matrices_of_the_prediction(cls: Any, make: Any, check_deterministic: bool) -> None:
    net = network()
    options = {"reduction": "mean", "check_deterministic": check_deterministic}
    with pytest.raises(ValueError, match=MESSAGE):
        cls(net, make(net), net, DATA, **options).to_dense()


def test_the_mend() -> None:
    """What the message says: add the matrix of the decay."""
    net = network()
    G = GGNLinearOperator(net, CE, net, DATA)
    A = G + 2 * DECAY * IdentityLinearOperator.like(G)
    right = dense.ggn(net, CE, list(net.parameters()), X, LABELS)
    agree(A, right + 2 * DECAY * torch.eye(len(right)).double())


def test_chains() -> None:
    net = network()
    with pytest.raises(ValueError, match=MESSAGE):
        ChainHessianLinearOperator(net, of_module(net), X, LABELS)


class Innocent:
    """Holds the model, but its loss does not look at it."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def loss(self, f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y)


@of_prediction
@checks
def test_losses_that_only_could(cls: Any, check_deterministic: bool) -> None:
    net = network()
    options = {"reduction": "mean", "check_deterministic": check_deterministic}
    A = cls(net, Innocent(net).loss, net, DATA, **options)
    agree(A, cls(net, CE, net, DATA).to_dense())


def test_losses_that_only_could_are_differentiated_as_ever() -> None:
    net = network()
    H = HessianLinearOperator(net, Innocent(net).loss, net, DATA, reduction="mean")
    assert H.risk.parameters.functional
    right = dense.hessian(net, CE, list(net.parameters()), X, LABELS)
    agree(H, right)
    agree(H.linearize(), right)


# --------------------------------------------------------- what a sum cannot be made of


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_term_of_each_call_is_no_sum(size: float) -> None:
    """It would be counted once for each batch, however small it is in the loss."""
    net = network()

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y, reduction="sum") + size * decay(net.parameters())

    with pytest.raises(ValueError, match=r"reduction='sum' is no sum over examples"):
        HessianLinearOperator(net, loss, net, DATA, reduction="sum")
    H = HessianLinearOperator(net, loss, net, [(X, LABELS)], reduction="sum")
    agree(H, dense.hessian(net, loss, list(net.parameters()), X, LABELS))


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_term_for_each_datum_is_no_sum(size: float) -> None:
    net = network()

    def loss(f: Tensor, y: Tensor, reduction: str = "sum") -> Tensor:
        terms = F.cross_entropy(f, y, reduction=reduction)
        return terms + size * decay(net.parameters())

    with pytest.raises(ValueError, match=r"'sum' gives.*but the sum of its terms"):
        HessianLinearOperator(net, loss, net, DATA)


# ---------------------------------------------------------- parameters of the loss itself


class Metric(nn.Module):
    """A head over features: scaled similarities to prototypes, with a temperature."""

    reduction = "mean"

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(dense.normal(3, 3, seed=5))
        self.log_scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        scores = F.normalize(f, dim=1) @ F.normalize(self.prototypes, dim=1).T
        return F.cross_entropy(self.log_scale.exp() * scores, y, reduction=self.reduction)


def terms_of(loss: Metric) -> Any:
    def terms(f: Tensor, y: Tensor) -> Tensor:
        loss.reduction = "none"
        out: Tensor = loss(f, y)
        loss.reduction = "mean"
        return out

    return terms


@checks
@pytest.mark.parametrize("form", ["list", "dict", "loss only"])
@pytest.mark.parametrize("cls", [HessianLinearOperator, EFLinearOperator])
def test_parameters_of_the_loss(cls: Any, form: str, check_deterministic: bool) -> None:
    net, loss = network(), Metric()
    params: Any = [*net.parameters(), *loss.parameters()]
    if form == "loss only":
        params = list(loss.parameters())
    given = dict(enumerate(params)) if form == "dict" else params
    given = {f"p{k}": p for k, p in given.items()} if form == "dict" else given
    A = cls(net, loss, given, DATA, check_deterministic=check_deterministic)
    if cls is HessianLinearOperator:
        right = dense.hessian(net, loss, params, X, LABELS)

        def gradient() -> Any:
            return torch.autograd.grad(loss(net(X), LABELS), params)

        agree(A, differences(gradient, params), 1e-6)
    else:
        right = dense.empirical_fisher(net, loss, terms_of(loss), params, X, LABELS)
    agree(A, right)
    agree(A.linearize(), right)
    if form == "list":
        assert A.domain_names[-2:] == ("loss.prototypes", "loss.log_scale")


def test_tensors_of_a_function() -> None:
    """A temperature that a closure holds."""
    net = network()
    T = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f / T, y)

    params = [*net.parameters(), T]
    H = HessianLinearOperator(net, loss, params, DATA, reduction="mean")
    agree(H, dense.hessian(net, loss, params, X, LABELS))
    D = HessianDiagonalLinearOperator(net, loss, params, DATA, reduction="mean")
    agree(D, dense.hessian(net, loss, params, X, LABELS).diag().diag())


@of_prediction
@checks
def test_matrices_of_the_prediction_with_parameters_of_the_loss(
    cls: Any, check_deterministic: bool
) -> None:
    net, loss = network(), Metric()
    params = [*net.parameters(), *loss.parameters()]
    with pytest.raises(ValueError, match=MESSAGE):
        cls(net, loss, params, DATA, check_deterministic=check_deterministic).to_dense()


@of_prediction
def test_parameters_of_the_loss_as_constants(cls: Any) -> None:
    """Left out of params they are what they were."""
    net, loss = network(), Metric()

    def same(f: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        scores = F.normalize(f, dim=1) @ F.normalize(loss.prototypes.detach(), dim=1).T
        scale = loss.log_scale.detach().exp()
        return F.cross_entropy(scale * scores, y, reduction=reduction)

    options = {"fisher_type": "empirical"} if cls in KRONECKER else {}  # it is not convex
    agree(
        cls(net, loss, net, DATA, **options),
        cls(net, same, net, DATA, **options).to_dense(),
    )


@pytest.mark.parametrize("cls", JACOBIANS)
def test_jacobians_have_no_place_for_them(cls: Any) -> None:
    net, loss = network(), Metric()
    params = [*net.parameters(), *loss.parameters()]
    with pytest.raises(ValueError, match=r"Parameter 4 of shape \(3, 3\) does not belong"):
        build(cls, net, loss, params, DATA)


def test_other_values_for_what_the_loss_reads() -> None:
    net = network()
    other = {n: p.detach().clone() for n, p in net.named_parameters()}
    with pytest.raises(ValueError, match=r"loss refers to the module's own '0\.weight'"):
        HessianLinearOperator(net, of_module(net), other, DATA, reduction="mean")


def test_preflight() -> None:
    net = network()
    found = preflight(net, of_module(net), net, DATA, reduction="mean", max_seconds=5)
    assert found.trial("Hessian", "backpack").verdict == "right"
    assert found.trial("GGN", "backpack").verdict not in ("right", "unchecked")
    loss = Metric()
    params = [*net.parameters(), *loss.parameters()]
    found = preflight(net, loss, params, DATA, max_seconds=5)
    assert found.trial("Hessian", "backpack").verdict == "right"
    assert found.trial("EF", "backpack").verdict == "right"
