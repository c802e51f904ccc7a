"""KFAC, EKFAC and their inverses, with dense matrices from the formulae."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from curvop import (
    EKFACLinearOperator,
    KFACLinearOperator,
    KroneckerInverseLinearOperator,
    LinearOperator,
)
from tests.cases.case import Case
from tests.cases.problem import Problem
from tests.cases.truth import block_diagonal, ggn
from tests.kronecker import reference
from tests.kronecker.networks import BY_NAME, Network, Params, parameters

LABELS = torch.tensor([0, 1, 2, 2, -100, 1, 0])
CUTS = (3, 1, 3)
DAMPING = 0.1


def _loss(dtype: torch.dtype) -> nn.Module:
    weight = torch.tensor([0.5, 2.0, 1.25], dtype=dtype)
    return nn.CrossEntropyLoss(weight, ignore_index=-100, label_smoothing=0.1)


def _problem(name: str, dtype: torch.dtype) -> tuple[Any, nn.Module, Params, list[Any]]:
    network = BY_NAME[name]
    p = {n: t.detach().to(dtype).requires_grad_() for n, t in parameters(name).items()}
    X = network.X.to(dtype).split(CUTS)
    return network, _loss(dtype), p, list(zip(X, LABELS.split(CUTS), strict=True))


def _divisor(network: Network, p: Params) -> float:
    total = nn.CrossEntropyLoss(**_options(), reduction="sum")
    f = network(p, network.X).detach()
    return float(total(f, LABELS) / _loss(torch.float64)(f, LABELS))


def _options() -> dict[str, Any]:
    loss = _loss(torch.float64)
    return {"weight": loss.weight, "ignore_index": -100, "label_smoothing": 0.1}


def _kfac(name: str, joint: bool, approx: str) -> Tensor:
    network, p = BY_NAME[name], parameters(name)
    return reference.kfac(
        network,
        p,
        nn.CrossEntropyLoss(**_options(), reduction="sum"),
        network.X.split(1),
        LABELS.split(1),
        _divisor(network, p),
        joint=joint,
        reduce=approx == "reduce",
    )


def _ekfac(name: str) -> Tensor:
    """The diagonal of the exact blocks in the eigenbasis of KFAC, block by block."""
    network, p = BY_NAME[name], parameters(name)
    K = _kfac(name, joint=False, approx="expand")
    sizes = [t.numel() for t in p.values()]
    G = ggn(
        Problem(
            network,
            p,
            _loss(torch.float64),
            network.X,
            LABELS,
            forward=lambda X: network(p, X),
        )
    )
    G = block_diagonal(G, sizes)
    out, start = torch.zeros_like(K), 0
    for size in sizes:
        at = slice(start, start + size)
        _, Q = torch.linalg.eigh(K[at, at])
        out[at, at] = Q @ (Q.T @ G[at, at] @ Q).diagonal().diag() @ Q.T
        start += size
    return out


def _inverse(D: Tensor) -> Tensor:
    return (D + DAMPING * torch.eye(len(D), dtype=D.dtype)).inverse()


def cases() -> Iterator[Case]:
    """Each operator, and what the inverse makes of it."""
    for name, joint, approx in [
        ("mlp", False, "expand"),
        ("conv2d-groups", True, "expand"),
        ("called_twice", True, "reduce"),
    ]:
        options = {"separate_weight_and_bias": not joint, "kfac_approx": approx}
        dense = functools.partial(_kfac, name, joint, approx)
        yield from _of(f"kfac-{name}-{approx}", KFACLinearOperator, name, dense, options)
    yield from _of(
        "ekfac-mlp", EKFACLinearOperator, "mlp", functools.partial(_ekfac, "mlp"), {}
    )


def _of(
    title: str,
    kind: type[LinearOperator],
    name: str,
    dense: Callable[[], Tensor],
    options: dict[str, Any],
) -> Iterator[Case]:
    def build(dtype: torch.dtype) -> Any:
        return kind(*_problem(name, dtype), **options)

    yield Case(title, kind, build, dense)
    yield Case(
        f"{title}-inverse",
        KroneckerInverseLinearOperator,
        lambda dtype: build(dtype).inverse(DAMPING),
        lambda: _inverse(dense()),
    )
