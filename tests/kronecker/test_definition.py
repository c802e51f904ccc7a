"""KFAC equals its formula: layers, options, losses, batches."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop.kronecker import KFACLinearOperator
from tests.comparing import error, random
from tests.curvature.loss_cases import CASES, LossCase
from tests.kronecker import reference
from tests.kronecker.networks import (
    BY_NAME,
    NETWORKS,
    Network,
    Params,
    linear,
    parameters,
    tensors,
)

TOLERANCE = 1e-10
CUTS = (3, 1, 3)
LABELS = torch.tensor([0, 1, 2, 2, -100, 1, 0])
WEIGHT = torch.tensor([0.5, 2.0, 1.2], dtype=torch.float64)
LOSS = nn.CrossEntropyLoss(WEIGHT, ignore_index=-100, label_smoothing=0.1)


def batches(X: Tensor, y: Any, cuts: tuple[int, ...] = CUTS) -> list[tuple[Any, Any]]:
    return list(zip(X.split(cuts), y.split(cuts), strict=True))


def data_of(t: Tensor) -> tuple[Tensor, ...]:
    return t.split(1)


def summed(loss: Any) -> Any:
    """The sum of the terms of a loss."""
    if isinstance(loss, nn.Module):
        other = copy.copy(loss)
        other.reduction = "sum"
        return other
    return functools.partial(loss, reduction="sum")


def divisor(loss: Any, f: Tensor, y: Any) -> float:
    return float((summed(loss)(f, y) / loss(f, y)).detach())


def expected(network: Network, p: Params, loss: Any, y: Any, **options: Any) -> Tensor:
    Z = divisor(loss, network(p, network.X), y)
    X = data_of(network.X)
    return reference.kfac(network, p, summed(loss), X, data_of(y), Z, **options)


@pytest.mark.parametrize("joint", [False, True], ids=["separate", "joint"])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_layers(network: Network, approx: str, joint: bool) -> None:
    p = parameters(network.name)
    K = KFACLinearOperator(
        network,
        LOSS,
        p,
        batches(network.X, LABELS),
        kfac_approx=approx,
        separate_weight_and_bias=not joint,
        unsupported="error",
    )
    right = expected(network, p, LOSS, LABELS, joint=joint, reduce=approx == "reduce")
    assert error(K.to_dense(), right) <= TOLERANCE


@pytest.mark.parametrize("name", ["tokens", "conv2d"])
def test_some_parameters(name: str) -> None:
    """A constant weight or bias leaves the factors of the others as they are."""
    network, p = BY_NAME[name], parameters(name)
    right = expected(network, p, LOSS, LABELS)
    ends = torch.tensor([t.numel() for t in p.values()]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    for left_out in ("W", "b"):
        some = {n: t for n, t in p.items() if n != left_out}
        K = KFACLinearOperator(
            lambda q, X: network({**p, **q}, X), LOSS, some, batches(network.X, LABELS)
        )
        places = zip(p, starts, ends, strict=True)
        at = torch.cat([torch.arange(s, e) for n, s, e in places if n != left_out])
        assert error(K.to_dense(), right[at[:, None], at]) <= TOLERANCE


def prediction_of(case: LossCase) -> Network:
    """A hidden layer, and predictions that fit the loss."""
    m = int(torch.Size(case.shape).numel())

    def forward(p: Params, X: Tensor, note: Any) -> Tensor:
        f = linear(p, "V", "c", torch.tanh(linear(p, "W", None, X, note)), note)
        f = f.reshape(len(X), *case.shape)
        return f if case.link is None else case.link(f)

    shapes = {"W": (2, 2), "V": (m, 2), "c": (m,)}
    return Network(case.name, lambda: tensors(**shapes), forward, random(7, 2, seed=1))


def convex(case: LossCase) -> bool:
    """Torch's own losses are; of the others the one that is known to be."""
    own = ("RelativeSquare", "RenamedEntropy", "TemperedEntropy", "quartic", "keyword")
    torch_made = case.name[0].isupper() or case in CASES[: len(CASES) // 2]
    return case.name.startswith(own) or (torch_made and not case.name.startswith("Focal"))


def is_tensor(case: LossCase) -> bool:
    return isinstance(case.y, Tensor) and isinstance(
        prediction_of(case)(prediction_of(case).params(), random(7, 2)), Tensor
    )


LOSSES = [c for c in CASES if c.terms is not None and is_tensor(c) and convex(c)]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # KLDivLoss
@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
def test_losses(case: LossCase) -> None:
    network = prediction_of(case)
    p = network.params()

    def total(f: Tensor, y: Any) -> Tensor:
        assert case.terms is not None
        return case.terms(f, y).sum()

    f = network(p, network.X)
    Z = float((total(f, case.y) / case.scalar(f, case.y)).detach())
    right = reference.kfac(network, p, total, data_of(network.X), data_of(case.y), Z)
    K = KFACLinearOperator(
        network,
        case.loss,
        p,
        batches(network.X, case.y),
        reduction=case.reduction,
        check_deterministic=False,
    )
    assert error(K.to_dense(), right) <= TOLERANCE
