"""Losses of torch's that have been altered: another forward, hooks, a compiled wrapper."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import (
    ChainHessianLinearOperator,
    EFDiagonalLinearOperator,
    EFLinearOperator,
    HessianLinearOperator,
    KFACLinearOperator,
    preflight,
)
from tests.curvature import dense
from tests.curvature.doors import (
    KRONECKER,
    LABELS,
    PARTS,
    X,
    agree,
    network,
    of_losses,
    truth,
)

DATA = dense.batches(X, LABELS, PARTS)
OF_TERMS = (EFLinearOperator, EFDiagonalLinearOperator)
checks = pytest.mark.parametrize("check_deterministic", [True, False])


def five(f: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    return 5 * F.cross_entropy(f, y, reduction=reduction)


def replaced() -> nn.CrossEntropyLoss:
    loss = nn.CrossEntropyLoss()
    loss.forward = lambda f, y: five(f, y)  # type: ignore[method-assign]
    return loss


def bound() -> nn.CrossEntropyLoss:
    """A method of the instance, which a copy of it would not follow."""
    loss = nn.CrossEntropyLoss()

    def forward(self: Any, f: Tensor, y: Tensor) -> Tensor:
        return five(f, y, self.reduction)

    loss.forward = types.MethodType(forward, loss)  # type: ignore[method-assign]
    return loss


def hooked(loss: nn.Module | None = None) -> nn.Module:
    loss = nn.CrossEntropyLoss() if loss is None else loss
    loss.register_forward_hook(lambda module, inputs, out: 5 * out)
    return loss


def hooked_before() -> nn.Module:
    """On ``f / 2``."""
    loss = nn.CrossEntropyLoss()
    loss.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 2, inputs[1]))
    return loss


class Overridden(nn.CrossEntropyLoss):
    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        return five(f, y, self.reduction)


def half(f: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(f / 2, y, reduction=reduction)


ALTERED = {
    "forward": (replaced, five),
    "method": (bound, five),
    "hook": (hooked, five),
    "pre-hook": (hooked_before, half),
    "call": (Overridden, five),
}


@of_losses
@checks
@pytest.mark.parametrize(("make", "plain"), ALTERED.values(), ids=ALTERED)
def test_altered_losses(cls: Any, make: Any, plain: Any, check_deterministic: bool) -> None:
    net = network()
    params = list(net.parameters())

    def built() -> Any:
        return cls(net, make(), params, DATA, check_deterministic=check_deterministic)

    if cls in OF_TERMS and make in (replaced, bound):
        with pytest.raises(
            TypeError, match=r"needs the unreduced terms.*only gives a scal"
        ):
            built()
        return
    if cls in KRONECKER:
        right = cls(net, plain, params, DATA).to_dense()
    else:

        def terms(f: Tensor, y: Tensor) -> Tensor:
            out: Tensor = plain(f, y, "none")
            return out

        right = truth(cls, net, plain, terms, params, X, LABELS)
    agree(built(), right)


@of_losses
@checks
def test_hooks_keep_the_divisor(cls: Any, check_deterministic: bool) -> None:
    """A hook that looks, or scales, leaves weights and ignored targets what they are."""
    net, y = network(), LABELS.clone()
    y[::3] = -100
    weight = torch.tensor([1.0, 5.0, 0.5]).double()
    params = list(net.parameters())
    loss = hooked(nn.CrossEntropyLoss(weight=weight))
    plain = nn.CrossEntropyLoss(weight=weight)
    data = dense.batches(X, y, PARTS)
    A = cls(net, loss, params, data, check_deterministic=check_deterministic)
    factor = 25 if cls in OF_TERMS else 5
    if cls in KRONECKER:
        right = cls(net, plain, params, data).to_dense()
    else:
        terms = nn.CrossEntropyLoss(weight=weight, reduction="none")
        right = truth(cls, net, plain, terms, params, X, y)
    agree(A, factor * right)


@of_losses
@checks
def test_hooks_that_reduce(cls: Any, check_deterministic: bool) -> None:
    """Of such a loss the terms are unknown."""
    loss = nn.CrossEntropyLoss()
    loss.register_forward_hook(lambda module, inputs, out: 5 * out.mean())
    net = network()
    message = "returns a scalar for reduction='none'"
    options = {"check_deterministic": check_deterministic}
    with pytest.raises(ValueError, match=message):
        cls(net, loss, list(net.parameters()), DATA, **options).to_dense()


@pytest.mark.parametrize("fisher_type", ["mc", "empirical"])
def test_fishers_of_a_replaced_forward(fisher_type: Any) -> None:
    """Neither the distribution nor the terms of torch's formula are those of this one."""
    net = network()
    with pytest.raises((ValueError, TypeError), match=r"is not known|unreduced terms"):
        KFACLinearOperator(
            net, replaced(), [*net.parameters()], DATA, fisher_type=fisher_type
        )


def test_classes_of_ones_own_are_told_by_class() -> None:
    """A hook on one instance does not alter another."""
    net = network()
    params = list(net.parameters())
    hooked()
    H = HessianLinearOperator(net, nn.CrossEntropyLoss(), params, DATA)
    agree(H, dense.hessian(net, F.cross_entropy, params, X, LABELS))


def test_compiled_loss() -> None:
    """The loss inside the wrapper, whose terms can be asked for."""
    net = network()
    params = list(net.parameters())
    weight = torch.tensor([1.0, 5.0, 0.5]).double()
    loss = torch.compile(nn.CrossEntropyLoss(weight=weight), backend="eager")
    H = HessianLinearOperator(net, loss, params, DATA)
    agree(H, dense.hessian(net, nn.CrossEntropyLoss(weight=weight), params, X, LABELS))


def test_chains() -> None:
    """A forward of its own may couple the data."""
    net = network()

    def coupled(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y) ** 2

    loss = nn.CrossEntropyLoss()
    loss.forward = coupled  # type: ignore[method-assign]
    H = ChainHessianLinearOperator(net, loss, X, LABELS)
    agree(H, dense.hessian(net, coupled, list(net.parameters()), X, LABELS))


def test_preflight() -> None:
    net = network()
    for make in (replaced, hooked):
        found = preflight(net, make(), net, DATA, max_seconds=5)
        for matrix in ("Hessian", "GGN"):
            assert found.trial(matrix, "backpack").verdict == "right"
