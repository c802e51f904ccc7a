"""Parameters as modules give them, and those that cannot be right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import HessianLinearOperator, preflight
from tests.curvature import dense
from tests.curvature.doors import (
    KRONECKER,
    LABELS,
    PARTS,
    X,
    agree,
    build,
    network,
    of_all,
    truth,
)

CE = nn.CrossEntropyLoss()
TERMS = nn.CrossEntropyLoss(reduction="none")
DATA = dense.batches(X, LABELS, PARTS)
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


def check(cls: Any, net: Any, params: Any, expected: Any = None) -> Any:
    """Compare with the dense matrix for these tensors; Kronecker factors with a list."""
    expected = list(net.parameters()) if expected is None else expected
    A = build(cls, net, CE, params, DATA)
    if cls in KRONECKER:
        agree(A, cls(net, CE, expected, DATA).to_dense())
    else:
        agree(A, truth(cls, net, CE, TERMS, expected, X, LABELS))
    return A


def names(A: Any) -> Any:
    return A.domain_names or A.T.domain_names


@of_all
def test_the_module_itself(cls: Any) -> None:
    net = network()
    A = check(cls, net, net)
    assert names(A) == NAMES


@of_all
def test_a_module_means_what_requires_a_gradient(cls: Any) -> None:
    net = network()
    net[0].requires_grad_(False)
    check(cls, net, net, [net[2].weight, net[2].bias])


@of_all
def test_part_of_a_module(cls: Any) -> None:
    net = network()
    A = check(cls, net, net[2], [net[2].weight, net[2].bias])
    assert names(A) == NAMES[2:]


@of_all
def test_frozen_module(cls: Any) -> None:
    net = network().requires_grad_(False)
    with pytest.raises(ValueError, match=r"got none: no parameter of the Sequential req"):
        build(cls, net, CE, net, DATA)
    check(cls, net, net.parameters(), [p.requires_grad_() for p in net.parameters()])


@of_all
@pytest.mark.parametrize("form", [iter, list, dict, tuple])
def test_named_parameters(cls: Any, form: Any) -> None:
    net = network()
    params = form((n, p) for n, p in net.named_parameters() if n != "0.bias")
    A = check(cls, net, params, [net[0].weight, net[2].weight, net[2].bias])
    assert names(A) == ("0.weight", "2.weight", "2.bias")


@of_all
def test_generators(cls: Any) -> None:
    net = network()
    check(cls, net, net.parameters())
    check(cls, net, (p for p in net.parameters()))
    check(cls, net, dict(net.named_parameters()).values())
    check(cls, net, dict(net.named_parameters()).items())
    check(cls, net, nn.ParameterList(net.parameters()))


def test_named_parameters_of_a_function() -> None:
    net = network()

    def function(p: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(net, p, x)
        return out

    H = HessianLinearOperator(function, CE, net.named_parameters(), DATA)
    agree(H, dense.hessian(net, CE, list(net.parameters()), X, LABELS))
    assert H.domain_names == NAMES


@of_all
@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets(cls: Any, kind: Any) -> None:
    net = network()
    message = rf"parameters in an order, got a {kind.__name__}.*list\(model\.parameters"
    with pytest.raises(TypeError, match=message):
        build(cls, net, CE, kind(net.parameters()), DATA)


@of_all
@pytest.mark.parametrize("bad", [None, 3])
def test_no_iterable(cls: Any, bad: Any) -> None:
    net = network()
    message = rf"list or dict of parameters, got {type(bad).__name__}"
    with pytest.raises(TypeError, match=message):
        build(cls, net, CE, bad, DATA)


@of_all
def test_names_of_each_other(cls: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    turned = {"0.weight": net[2].weight, "2.weight": net[0].weight}
    message = r"'0\.weight' of params is the module's '2\.weight'.*another '0\.weight'"
    with pytest.raises(ValueError, match=message):
        build(cls, net, CE, turned, DATA)


@of_all
def test_two_tensors_for_one_name(cls: Any) -> None:
    net = network()
    other = {"0.weight": net[0].weight.detach().clone(), "own": net[0].weight}
    with pytest.raises(ValueError, match=r"got two tensors for '0\.weight'"):
        build(cls, net, CE, other, DATA)
    with pytest.raises(ValueError, match=r"each name once among the named"):
        build(cls, net, CE, [("w", p) for p in net.parameters()], DATA)


@of_all
def test_names_of_ones_own(cls: Any) -> None:
    """Names that the module does not have are the user's business."""
    net = network()
    A = check(
        cls,
        net,
        {"first": net[0].weight, "last": net[2].bias},
        [net[0].weight, net[2].bias],
    )
    assert names(A) == ("first", "last")


@of_all
def test_either_name_of_a_tied_parameter(cls: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False).double()
            self.b = nn.Linear(4, 4, bias=False).double()
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x).tanh())
            return out

    net = Tied()
    for name in ("a.weight", "b.weight"):
        assert names(check(cls, net, {name: net.a.weight}, [net.a.weight])) == (name,)


@of_all
@pytest.mark.parametrize("form", ["module", "list", "others", "closure"])
def test_lazy_modules(cls: Any, form: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LazyLinear(3)).double()
    model: Any = net
    params: Any = {"module": net, "others": [net[0].weight]}.get(form, net.parameters())
    if form == "closure":
        model, params = (lambda x: net(x)), [net[0].weight]
    message = r"'2\.weight' of Sequential.*not initialised yet\. Run one forward pass"
    with pytest.raises(ValueError, match=message):
        build(cls, model, CE, params, DATA)
    net(X)
    check(cls, net, net)


def test_a_lazy_parameter_by_itself() -> None:
    lazy = nn.LazyLinear(3).weight
    with pytest.raises(ValueError, match=r"got 0, which is not initialised yet"):
        HessianLinearOperator(lambda x: x, CE, [lazy], DATA)
    with pytest.raises(ValueError, match=r"got 'w', which is not initialised yet"):
        HessianLinearOperator(lambda p, x: x, CE, {"w": lazy}, DATA)


@of_all
def test_modules_compiled_in_place(cls: Any) -> None:
    """What was compiled belongs to the module's own tensors."""
    net = network()
    net.compile(backend="eager")
    check(cls, net, net)


def test_preflight() -> None:
    net = network()

    def once() -> Iterator[Tensor]:
        yield from net.parameters()

    for params in (net, net.named_parameters(), once()):
        found = preflight(net, CE, params, DATA, max_seconds=5)
        assert found.trial("Hessian", "backpack").verdict == "right"
