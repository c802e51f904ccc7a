"""Predictions that depend on no parameter are no model; one unused parameter is fine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import GGNLinearOperator, HessianLinearOperator, JacobianLinearOperator
from tests.curvature import dense
from tests.curvature.doors import (
    JACOBIANS,
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

DATA = dense.batches(X, LABELS, PARTS)
CE = nn.CrossEntropyLoss()
TERMS = nn.CrossEntropyLoss(reduction="none")
MESSAGE = r"uses none of the given parameters.*detaches.*no_grad.*Pass the tensors"
checks = pytest.mark.parametrize("check_deterministic", [True, False])


class Cut(nn.Module):
    """A network whose prediction is cut off from its parameters."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net = network()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detached":
            return self.net(x).detach()  # type: ignore[no-any-return]
        with torch.no_grad():
            return self.net(x)  # type: ignore[no-any-return]


class Idle(nn.Module):
    """A network with a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.idle = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def product(A: Any) -> Any:
    return A @ torch.ones(A.shape[1], dtype=torch.float64)


told_after = pytest.mark.filterwarnings("ignore:torch.func does not support this model")


@of_all
@checks
@told_after
@pytest.mark.parametrize("form", ["module", "closure"])
@pytest.mark.parametrize("how", ["detached", "no_grad"])
def test_cut_off(cls: Any, how: str, form: str, check_deterministic: bool) -> None:
    if cls is JacobianLinearOperator and (how, form) == ("no_grad", "module"):
        check_deterministic = True  # forward mode goes through; the check tells
    model = Cut(how)
    function = model if form == "module" else (lambda x: model(x))
    params = list(model.parameters())
    options = {"check_deterministic": check_deterministic}
    with pytest.raises(ValueError, match=MESSAGE):
        product(build(cls, function, CE, params, DATA, **options))


class Behind(nn.Module):
    """A network with a body that is cut off, before a head that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.body(x).tanh()
        return self.head(hidden)  # type: ignore[no-any-return]


@of_all
@checks
@told_after
def test_parameters_that_are_cut_off(cls: Any, check_deterministic: bool) -> None:
    """The prediction changes with them, and autograd does not know."""
    model = Behind()
    if cls is JacobianLinearOperator:
        check_deterministic = True
    options = {"check_deterministic": check_deterministic}
    with pytest.raises(ValueError, match=MESSAGE):
        product(build(cls, model, CE, model.body, DATA, **options))


@of_all
@checks
def test_only_parameters_that_are_not_used(cls: Any, check_deterministic: bool) -> None:
    """The prediction does not change with them: the matrix is zero."""
    model = Idle()
    options = {"check_deterministic": check_deterministic}
    A = build(cls, model, CE, model.idle, DATA, **options)
    assert not A.to_dense().any()


@told_after
@pytest.mark.parametrize("how", ["detached", "no_grad"])
def test_what_follows_from_operators(how: str) -> None:
    """Without the check they are told when first needed."""
    model = Cut(how)
    params = list(model.parameters())
    G = GGNLinearOperator(model, CE, params, DATA, check_deterministic=False)
    J = JacobianLinearOperator(model, params, DATA, check_deterministic=False)
    for derived in (G.factor, G.linearize, J.linearize):
        with pytest.raises(ValueError, match=MESSAGE):
            product(derived())


@of_all
@checks
def test_one_unused_parameter_is_fine(cls: Any, check_deterministic: bool) -> None:
    model = Idle()
    params = [*model.net.parameters(), *model.idle.parameters()]
    A = build(cls, model, CE, params, DATA, check_deterministic=check_deterministic)
    if cls in KRONECKER:
        used = cls(model.net, CE, model.net, DATA).to_dense()
        right = torch.block_diag(used, torch.zeros(6, 6).double())
    else:
        right = truth(cls, model, CE, TERMS, params, X, LABELS)
    agree(A, right)


@pytest.mark.parametrize("block_sizes", [[2, 2, 2], [4, 2]])
def test_a_block_of_unused_parameters_is_fine(block_sizes: Any) -> None:
    model = Idle()
    params = [*model.net.parameters(), *model.idle.parameters()]
    H = HessianLinearOperator(model, CE, params, DATA, block_sizes=block_sizes)
    assert not (H.to_dense()[-6:]).any()
    assert H.to_dense().any()


class Routed(nn.Module):
    """An expert that only some data reach."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = network()

    def forward(self, x: Tensor) -> Tensor:
        mine = x[:, 0] > 0
        out = x.new_zeros(len(x), 3)
        out[mine] = self.expert(x[mine])
        return out


@of_all
@checks
def test_batches_that_reach_no_parameter(cls: Any, check_deterministic: bool) -> None:
    """What counts is all of the data."""
    if cls in KRONECKER:
        return  # data of a batch that do not reach a layer have no rows there
    model, order = Routed(), X[:, 0].argsort()
    x, y = X[order], LABELS[order]
    assert bool((x[:2, 0] < 0).all())
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    A = build(cls, model, CE, model, data, check_deterministic=check_deterministic)
    params = list(model.parameters())
    agree(A, truth(cls, model, CE, TERMS, params, x, y))


@pytest.mark.parametrize("cls", JACOBIANS)
def test_forward_mode_through_part_of_a_network_without_gradients(cls: Any) -> None:
    """It would go on where reverse mode stops."""

    model = Behind()
    with pytest.warns(UserWarning, match="forward and reverse mode disagree"):
        J = cls(model, model, DATA)
    agree(J, truth(cls, model, CE, TERMS, model.parameters(), X, LABELS))


def test_a_zero_vector_is_fine() -> None:
    net = network()
    H = HessianLinearOperator(net, CE, net, DATA)
    assert not (H @ torch.zeros(H.shape[0], dtype=torch.float64)).any()
