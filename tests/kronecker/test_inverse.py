"""Inverse, determinant, spectrum and norms against the dense matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import (
    GGNLinearOperator,
    IdentityLinearOperator,
    SingularSystemError,
    assume_symmetric,
    cg,
    eigsh,
    minres,
)
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.cases.problem import seeded
from tests.comparing import error, random
from tests.kronecker.networks import BY_NAME, NETWORKS, parameters
from tests.kronecker.test_definition import LABELS, LOSS, batches

TOLERANCE = 1e-9
both = pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
some_networks = pytest.mark.parametrize("name", ["mlp", "conv2d-groups", "tied_weight"])
joint = pytest.mark.parametrize("joint", [False, True])


def build(kind: Any, name: str, is_joint: bool = False, **options: Any) -> Any:
    network = BY_NAME[name]
    return kind(
        network,
        LOSS,
        parameters(name),
        batches(network.X, LABELS),
        separate_weight_and_bias=not is_joint,
        check_deterministic=False,
        **options,
    )


@both
@joint
@pytest.mark.parametrize("name", [n.name for n in NETWORKS])
def test_exact_inverse(kind: Any, name: str, joint: bool) -> None:
    K = build(kind, name, joint)
    damped = K.to_dense() + 0.1 * torch.eye(K.shape[0], dtype=torch.float64)
    inverse = K.inverse(0.1)
    assert inverse.psd
    assert error(inverse.to_dense(), damped.inverse()) <= TOLERANCE
    X = random(K.shape[0], 3)
    assert error(inverse @ X, torch.linalg.solve(damped, X)) <= TOLERANCE
    assert error(K.logdet(0.1), torch.logdet(damped)) <= TOLERANCE


@both
@joint
@some_networks
def test_numbers(kind: Any, name: str, joint: bool) -> None:
    K = build(kind, name, joint)
    D = K.to_dense()
    assert error(K.trace(), D.trace()) <= TOLERANCE
    assert error(K.frobenius_norm(), D.norm()) <= TOLERANCE
    eigen = K.eigh()
    V = eigen.vectors.to_dense()
    assert error(eigen.values, torch.linalg.eigvalsh(D)) <= TOLERANCE
    assert error(V.T @ V, torch.eye(len(D), dtype=torch.float64)) <= TOLERANCE
    assert error(D @ V, V * eigen.values) <= TOLERANCE
    x = random(len(D), 2)
    assert error(eigen.vectors.T @ x, V.T @ x) <= TOLERANCE
    assert bool((eigen.values.diff() >= 0).all())


@both
@joint
def test_damping_for_each_block(kind: Any, joint: bool) -> None:
    K = build(kind, "mlp", joint)
    sizes = [s.numel() for s in K.domain]
    values = [0.1, 0.1, 0.3, 0.3] if joint else [0.1, 0.2, 0.3, 0.4]
    by_name = dict(zip("WbVc", values, strict=True))
    per_block = values[::2] if joint else values
    assert [len(names) for names in K.block_names] == ([2, 2] if joint else [1] * 4)
    diagonal = torch.cat(
        [
            torch.full((n,), v, dtype=torch.float64)
            for n, v in zip(sizes, values, strict=True)
        ]
    )
    right = (K.to_dense() + diagonal.diag()).inverse()
    for damping in (by_name, per_block):
        assert error(K.inverse(damping).to_dense(), right) <= TOLERANCE
        assert error(K.logdet(damping), -torch.logdet(right)) <= TOLERANCE


@joint
@some_networks
def test_heuristic_inverse(name: str, joint: bool) -> None:
    """``(B + √λ/π) ⊗ (A + π √λ)``, with ``π²`` the ratio of mean eigenvalues."""
    K = build(KFACLinearOperator, name, joint)
    inverse = K.inverse(0.1, method="heuristic")
    right = torch.zeros_like(K.to_dense())
    for block in K.factors.blocks:
        members = block.members
        at = positions(K, members)
        for g in range(members.groups):
            B = block.left[g]
            if block.right is None:
                damped = B + 0.1 * torch.eye(len(B), dtype=torch.float64)
            else:
                A = block.right[g]
                pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
                damped = torch.kron(
                    B + 0.1**0.5 / pi * torch.eye(len(B), dtype=torch.float64),
                    A + 0.1**0.5 * pi * torch.eye(len(A), dtype=torch.float64),
                )
            rows = at[g].flatten()
            right[rows[:, None], rows] = damped.inverse()
    assert error(inverse.to_dense(), right) <= TOLERANCE


def positions(K: Any, members: Any) -> Tensor:
    """Where the entries ``[G, a, n]`` of a block are in a vector."""
    index = torch.arange(K.shape[0]).split([s.numel() for s in K.domain])
    return members.gather([t.reshape(1, *s) for t, s in zip(index, K.domain, strict=True)])[
        0
    ]


@both
def test_singular_without_damping(kind: Any) -> None:
    """Seven data cannot fill the factors of all layers; softmax ignores a shift."""
    K = build(kind, "mlp")
    for call in (lambda: K.inverse(), lambda: K.inverse(0.0), lambda: K.logdet()):
        with pytest.raises(SingularSystemError, match=r"block of .* is singular.*positive"):
            call()
    if kind is KFACLinearOperator:
        with pytest.raises(SingularSystemError, match="singular"):
            K.inverse(0.0, method="heuristic")


@both
def test_without_damping(kind: Any) -> None:
    """A matrix of full rank has an inverse and a determinant of its own."""
    model, X = seeded(lambda: nn.Linear(2, 2), torch.float64), random(9, 2)
    K = kind(model, nn.MSELoss(), model.parameters(), [(X, X)])
    D = K.to_dense()
    assert error(K.inverse().to_dense(), D.inverse()) <= TOLERANCE
    assert error(K.inverse(method="heuristic").to_dense(), D.inverse()) <= TOLERANCE
    assert error(K.logdet(), torch.logdet(D)) <= TOLERANCE


@pytest.mark.parametrize(
    ("damping", "kind", "told"),
    [
        (-1.0, ValueError, "at least 0"),
        (float("nan"), ValueError, "finite"),
        ([0.1, 0.2], ValueError, "4 dampings"),
        ({"W": 0.1}, ValueError, r"missing: \['V', 'b', 'c'\]"),
        (dict.fromkeys("WbVcx", 0.1), ValueError, r"not known: \['x'\]"),
        ("much", TypeError, "number"),
        (True, TypeError, "number"),
    ],
)
def test_bad_damping(damping: Any, kind: type[Exception], told: str) -> None:
    K = build(KFACLinearOperator, "mlp")
    with pytest.raises(kind, match=told):
        K.inverse(damping)


def test_bad_method_and_different_damping_in_a_block() -> None:
    K = build(KFACLinearOperator, "mlp", True)
    with pytest.raises(ValueError, match="'exact' or 'heuristic'"):
        K.inverse(0.1, method="pi")
    with pytest.raises(ValueError, match=r"same damping for \['W', 'b'\]"):
        K.inverse({"W": 0.1, "b": 0.2, "V": 0.1, "c": 0.1})


# ---------------------------------------------------------------- preconditioner


@both
@pytest.mark.parametrize("method", ["exact", "heuristic"])
def test_preconditions_solvers(kind: Any, method: Any) -> None:
    """Inputs of different size: systems with the damped GGN take fewer products."""
    model = seeded(lambda: nn.Linear(6, 4), torch.float64)
    X, y = random(60, 6) * torch.logspace(-1.5, 1.5, 6), torch.arange(60) % 4
    params = dict(model.named_parameters())
    args = (model, nn.CrossEntropyLoss(), params, [(X[:50], y[:50]), (X[50:], y[50:])])
    G = GGNLinearOperator(*args)
    K = kind(*args, separate_weight_and_bias=False)
    A = G + 1e-4 * IdentityLinearOperator.like(G)
    M, b = K.inverse(1e-4, method=method), random(A.shape[0])
    for solve in (cg, minres):
        plain, helped = (solve(A, b, rtol=1e-6, maxiter=2000, **o) for o in ({}, {"M": M}))
        assert helped.status == "converged"
        assert error(A @ helped.x, b) <= 1e-4
        assert helped.iterations < 0.8 * plain.iterations


@both
def test_preconditions_lobpcg(kind: Any) -> None:
    """The lowest eigenvalues of the damped GGN."""
    model, X, y = (
        seeded(lambda: nn.Linear(5, 4), torch.float64),
        random(60, 5),
        random(60, 4),
    )
    X = X * torch.logspace(0, 2, 5)
    args = (model, nn.MSELoss(), dict(model.named_parameters()), [(X, y)])
    G = GGNLinearOperator(*args)
    K = kind(*args, separate_weight_and_bias=False)
    found = eigsh(
        assume_symmetric(G),
        3,
        which="SA",
        method="lobpcg",
        M=K.inverse(1e-3),
        tol=1e-6,
    )
    right = torch.linalg.eigvalsh(G.to_dense())[:3]
    assert found.status == "converged"
    assert float((found.values - right).abs().max()) <= 1e-5 * float(G.to_dense().norm())
