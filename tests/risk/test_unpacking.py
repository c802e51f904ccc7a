"""Batches as loaders give them: mappings, triples, outputs with logits, anything else."""

from __future__ import annotations

import types
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    preflight,
    register_predictive,
)
from tests.curvature import dense, doors
from tests.curvature.doors import (
    KRONECKER,
    LABELS,
    PARTS,
    X,
    agree,
    build,
    network,
    of_all,
    of_losses,
    truth,
)

CE = nn.CrossEntropyLoss()
PAIRS = dense.batches(X, LABELS, PARTS)


class OfMapping(nn.Module):
    """A network on an entry of a mapping, which must not hold the targets."""

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.net = network()
        self.kind = kind

    def forward(self, batch: Any) -> Tensor:
        assert type(batch) is self.kind
        assert set(batch) == {"x", "scale"}
        out: Tensor = self.net(batch["x"] * batch["scale"])
        return out


def check(cls: Any, model: Any, data: Any, **options: Any) -> None:
    """Compare with the dense matrix; Kronecker factors with those of plain pairs."""
    net, params = network(), list(model.parameters())
    A = build(cls, model, CE, params, data, **options)
    if cls in KRONECKER:
        right = cls(net, CE, list(net.parameters()), PAIRS).to_dense()
    else:
        terms = nn.CrossEntropyLoss(reduction="none")
        right = truth(cls, net, CE, terms, net.parameters(), X, LABELS)
    agree(A, right)


KINDS = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "UserDict": UserDict,
    "read-only mapping": types.MappingProxyType,
}


@of_all
@pytest.mark.parametrize("label", ["labels", "targets", "target", "y"])
def test_mappings(cls: Any, label: str) -> None:
    data = [{"x": x / 2, label: y, "scale": 2 + 0 * x} for x, y in PAIRS]
    check(cls, OfMapping(), data)


@of_all
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds_of_mappings(cls: Any, kind: Any) -> None:
    batches = [{"x": x / 2, "labels": y, "scale": 2 + 0 * x} for x, y in PAIRS]
    inner = kind if kind in (OrderedDict, UserDict) else dict
    data = [kind(batch) for batch in batches]
    check(cls, OfMapping(inner), data)
    assert all("labels" in batch for batch in data)  # nothing was taken out


@of_all
def test_loader_of_mappings(cls: Any) -> None:
    pairs = zip(X, LABELS, strict=True)
    data: Any = [{"x": x / 2, "labels": y, "scale": 2 + 0 * x} for x, y in pairs]
    check(cls, OfMapping(), DataLoader(data, batch_size=3), num_data=len(X))


@of_all
def test_unpack(cls: Any) -> None:
    """Batches in a form of their own."""
    data = [{"first": (y, x)} for x, y in PAIRS]
    check(cls, network(), data, unpack=lambda batch: batch["first"][::-1])


@of_all
def test_unpack_of_a_loader(cls: Any) -> None:
    index = torch.arange(len(X))
    data = DataLoader(TensorDataset(X, LABELS, index), batch_size=3)
    check(cls, network(), data, unpack=lambda b: (b[0], b[1]), num_data=len(X))


@of_all
@pytest.mark.parametrize("bad", [3, "labels"])
def test_unpack_that_is_no_function(cls: Any, bad: Any) -> None:
    net = network()
    with pytest.raises(TypeError, match=r"unpack as a function.*returns \(X, y\), got"):
        build(cls, net, CE, list(net.parameters()), PAIRS, unpack=bad)


# ------------------------------------------------------------------------ weights

WEIGHT = dense.normal(len(X), seed=3).square()
TRIPLES = [(x, y, WEIGHT[list(part)]) for (x, y), part in zip(PAIRS, PARTS, strict=True)]


def weighted(f: Tensor, y: Tensor, weight: Tensor, reduction: str = "mean") -> Tensor:
    terms = weight * F.cross_entropy(f, y, reduction="none")
    return terms if reduction == "none" else getattr(terms, reduction)()


def by_name(
    f: Tensor, y: Tensor, sample_weight: Any = None, reduction: str = "mean"
) -> Tensor:
    return weighted(f, y, sample_weight, reduction)


class Weighing(nn.Module):
    reduction = "mean"

    def forward(self, f: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return weighted(f, y, weight, self.reduction)


@pytest.mark.parametrize("cls", doors.CURVATURES)
@pytest.mark.parametrize(
    "loss", [weighted, by_name, Weighing()], ids=["fn", "name", "class"]
)
@pytest.mark.parametrize("kind", [tuple, list])
def test_weights(cls: Any, loss: Any, kind: Any) -> None:
    net = network()
    data = [kind(batch) for batch in TRIPLES]
    A = cls(net, loss, list(net.parameters()), data, num_data=len(X))
    right = truth(
        cls,
        net,
        lambda f, y: weighted(f, y, WEIGHT),
        lambda f, y: weighted(f, y, WEIGHT, "none"),
        net.parameters(),
        X,
        LABELS,
    )
    agree(A, right)


@pytest.mark.parametrize("cls", KRONECKER)
@pytest.mark.parametrize("fisher_type", ["type-2", "empirical"])
def test_weights_of_kronecker_factors(cls: Any, fisher_type: str) -> None:
    """Against a loss that is handed targets and weights in one nest."""
    net = network()
    params = list(net.parameters())
    nests = [(x, (y, w)) for x, y, w in TRIPLES]

    def of_nest(f: Tensor, y: Any, reduction: str = "mean") -> Tensor:
        return weighted(f, *y, reduction=reduction)

    A = cls(net, weighted, params, TRIPLES, fisher_type=fisher_type)
    B = cls(net, of_nest, params, nests, fisher_type=fisher_type)
    agree(A, B.to_dense())


def test_mean_over_weights() -> None:
    """What it divides by is a function of the weights as well."""
    net = network()

    def loss(f: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return weighted(f, y, weight, "sum") / weight.sum()

    H = HessianLinearOperator(
        net, loss, list(net.parameters()), TRIPLES, reduction=lambda f, y, w: w.sum()
    )
    right = dense.hessian(
        net, lambda f, y: loss(f, y, WEIGHT), list(net.parameters()), X, LABELS
    )
    agree(H, right)


def test_samples_with_weights() -> None:
    """Targets are drawn, weights are the data's."""
    net = network()

    def loss(f: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return (weight * (f - y).square().sum(1)).sum() / 2

    def sample(f: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
        assert y.shape == f.shape
        return torch.full_like(f, 0.5)

    register_predictive(loss, sample)
    data = [(x, 0 * w[:, None] + net(x).detach(), w) for x, _, w in TRIPLES]
    G = GGNLinearOperator(
        net, loss, list(net.parameters()), data, reduction="sum", mc_samples=1
    )
    J = dense.jacobian(net, list(net.parameters()), X).view(len(X), 3, -1)
    g = WEIGHT[:, None] * (net(X).detach() - 0.5)
    rows = torch.einsum("ncp,nc->np", J, g)
    agree(G, rows.T @ rows)


@of_losses
def test_triples_need_a_loss_of_three(cls: Any) -> None:
    net = network()
    message = r"got tuple of length 3\. A triple.*loss \(prediction, y, weight\).*unpack="
    for loss in (CE, F.cross_entropy):  # whose third argument is the weight of a class
        with pytest.raises(TypeError, match=message):
            cls(net, loss, list(net.parameters()), TRIPLES)


@pytest.mark.parametrize("cls", doors.JACOBIANS)
def test_triples_of_a_jacobian(cls: Any) -> None:
    """It has no loss that could tell whether the third entry is a weight."""
    net = network()
    with pytest.raises(TypeError, match=r"got tuple of length 3\. A triple"):
        cls(net, list(net.parameters()), TRIPLES)


def test_an_option_is_no_weight() -> None:
    def smoothed(f: Tensor, y: Tensor, smoothing: float = 0.1) -> Tensor:
        return F.cross_entropy(f, y, label_smoothing=smoothing)

    net = network()
    with pytest.raises(TypeError, match="got tuple of length 3"):
        HessianLinearOperator(net, smoothed, [*net.parameters()], TRIPLES, reduction="mean")


# ------------------------------------------------------------------------- logits


@dataclass
class Output:
    """As ``transformers`` gives it."""

    logits: Tensor
    loss: Tensor | None = None
    hidden: Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """The same, a mapping as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Outputs(nn.Module):
    """A network that predicts its logits, among others."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.net = network()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        hidden = self.net[1](self.net[0](x))
        return self.make(logits=self.net[2](hidden), hidden=hidden)


@of_all
@pytest.mark.parametrize("make", [Output, ModelOutput, types.SimpleNamespace])
def test_logits(cls: Any, make: Any) -> None:
    check(cls, Outputs(make), PAIRS)


def test_logits_of_functions() -> None:
    net = network()
    params = dict(net.named_parameters())

    def functional(p: dict[str, Tensor], x: Tensor) -> Output:
        return Output(torch.func.functional_call(net, p, x))

    right = dense.hessian(net, CE, list(net.parameters()), X, LABELS)
    agree(HessianLinearOperator(functional, CE, params, PAIRS), right)
    closure = HessianLinearOperator(
        lambda x: Output(net(x)), CE, [*net.parameters()], PAIRS
    )
    agree(closure, right)


def test_output_without_logits() -> None:
    @dataclass
    class Other:
        scores: Tensor

    net = network()
    with pytest.raises(TypeError, match=r"prediction of floating-point tensors, got Other"):
        GGNLinearOperator(lambda x: Other(net(x)), CE, [*net.parameters()], PAIRS)


# ------------------------------------------------------------------------ refusals


@of_all
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, LABELS), r"got a tuple of its parts: did you mean \[\(X, y\)\]\?"),
        ([X, LABELS], r"got a list of its parts: did you mean \[\(X, y\)\]\?"),
        (({"x": X}, LABELS), r"got a tuple of its parts: did you mean \[\(X, y\)\]\?"),
        (X, r"got a tensor\. Wrap one batch as \[\(X, y\)\]"),
        ({"x": X, "labels": LABELS}, r"got a dict\. Wrap one batch"),
        ("train", r"got a str\. Wrap one batch"),
    ],
    ids=["pair", "list", "mapping and tensor", "tensor", "mapping", "string"],
)
def test_one_batch_that_is_not_wrapped(cls: Any, data: Any, message: str) -> None:
    net = network()
    with pytest.raises(TypeError, match=message):
        build(cls, net, CE, list(net.parameters()), data)


@of_all
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"a": X, "b": LABELS},
            r"got dict of length 2, with the keys 'a', 'b', none of them",
        ),
        (
            {"x": X, "labels": LABELS, "y": LABELS},
            r"the keys 'x', 'labels', 'y', several of them names of targets: 'labels', 'y'",
        ),
        (X, r"got Tensor of length 7"),
        ([X], r"got list of length 1"),
        ("x", r"got str of length 1"),
    ],
    ids=["no label", "two labels", "tensor", "single", "string"],
)
def test_batches_that_cannot_be_told(cls: Any, batch: Any, message: str) -> None:
    net = network()
    with pytest.raises(TypeError, match=rf"{message}.*unpack=, a function of the batch"):
        build(cls, net, CE, list(net.parameters()), [batch])


# ---------------------------------------------------------------- data is constant


@of_all
def test_inputs_that_require_a_gradient(cls: Any) -> None:
    data = [(x.clone().requires_grad_(), y) for x, y in PAIRS]
    check(cls, network(), data)
    through = [(2 * x.clone().requires_grad_() / 2, y) for x, y in PAIRS]
    check(cls, network(), through)
    assert all(x.grad is None and x.requires_grad for x, _ in data)


@pytest.mark.parametrize("fisher_type", ["type-2", "mc", "empirical"])
@pytest.mark.parametrize("cls", KRONECKER)
def test_kronecker_factors_of_inputs_that_require_a_gradient(
    cls: Any, fisher_type: str
) -> None:
    net = network()
    params = list(net.parameters())
    data = [(x.clone().requires_grad_(), y) for x, y in PAIRS]
    right = cls(net, CE, params, PAIRS, fisher_type=fisher_type)
    agree(cls(net, CE, params, data, fisher_type=fisher_type), right.to_dense(), 0.0)


@of_all
def test_data_that_is_computed_from_the_parameters(cls: Any) -> None:
    """Their derivative by way of the data would be missed."""
    net = network()
    data = [(x + net[0].weight.sum(), y) for x, y in PAIRS]
    with pytest.raises(ValueError, match=r"data that is constant.*computed from the param"):
        build(cls, net, CE, list(net.parameters()), data)


# -------------------------------------------------------------------- the same for all


def test_preflight_takes_the_same_batches() -> None:
    model = OfMapping()
    data = [{"x": x / 2, "labels": y, "scale": 2 + 0 * x} for x, y in PAIRS]
    found = preflight(model, CE, model, data, max_seconds=5)
    assert found.num_data == len(X)
    assert found.trial("Hessian", "backpack").verdict == "right"
    net = network()
    found = preflight(net, weighted, net, TRIPLES, max_seconds=5)
    assert found.trial("GGN", "backpack").verdict == "right"
    turned = [(y, x) for x, y in PAIRS]
    found = preflight(net, CE, net, turned, unpack=lambda b: b[::-1], max_seconds=5)
    assert found.trial("EF", "backpack").verdict == "right"
    outputs = Outputs(Output)
    found = preflight(outputs, CE, outputs, PAIRS, max_seconds=5)
    assert found.trial("GGN", "backpack").verdict == "right"


@pytest.mark.parametrize(
    "linearised", [HessianLinearOperator, GGNLinearOperator, EFLinearOperator]
)
def test_linearised(linearised: Any) -> None:
    net = network()
    A = linearised(net, weighted, list(net.parameters()), TRIPLES)
    agree(A.linearize(), A.to_dense())
    J = JacobianLinearOperator(net, list(net.parameters()), TRIPLES, unpack=lambda b: b[:2])
    agree(J.linearize(), dense.jacobian(net, list(net.parameters()), X))
