"""EKFAC: the best eigenvalues in the eigenbasis of KFAC."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvop import EFLinearOperator, GGNLinearOperator, LinearOperator
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.cases.problem import seeded
from tests.comparing import error, random
from tests.kronecker.networks import BY_NAME, NETWORKS, Network, parameters
from tests.kronecker.reference import loss_hessian
from tests.kronecker.test_definition import LABELS, LOSS, batches

TOLERANCE = 1e-10


def on_blocks(A: LinearOperator, K: Any) -> Tensor:
    """The dense matrix with zeros outside the blocks of ``K``."""
    return A.to_dense() * (pattern(K) > 0)


def pattern(K: Any) -> Tensor:
    """One where two entries belong to a block, also of one group of a convolution."""
    mark = torch.zeros(K.shape, dtype=torch.float64)
    sizes = [s.numel() for s in K.domain]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    for block in K.factors.blocks:
        members = block.members
        labels = []
        for i in members.positions:
            rows = torch.arange(members.groups).repeat_interleave(
                sizes[i] // members.groups
            )
            labels.append((torch.arange(ends[i] - sizes[i], ends[i]), rows))
        at, group = (torch.cat(parts) for parts in zip(*labels, strict=True))
        mark[at[:, None], at] = (group[:, None] == group).double()
    return mark


@pytest.mark.parametrize("joint", [False, True], ids=["separate", "joint"])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_eigenvalues_are_those_of_the_exact_matrix(
    network: Network, approx: str, joint: bool
) -> None:
    p, data = parameters(network.name), batches(network.X, LABELS)
    args = (network, LOSS, p, data)
    options: dict[str, Any] = {
        "kfac_approx": approx,
        "separate_weight_and_bias": not joint,
        "check_deterministic": False,
    }
    E = EKFACLinearOperator(*args, **options)
    K = KFACLinearOperator(*args, **options)
    G = GGNLinearOperator(*args).to_dense()
    eigen = E.eigh()
    V = eigen.vectors.to_dense()
    rotated = V.T @ K.to_dense() @ V
    assert error(rotated, rotated.diagonal().diag()) <= TOLERANCE
    assert error(eigen.values, (V.T @ (G * pattern(E)) @ V).diagonal()) <= TOLERANCE
    assert error(E.to_dense(), V @ eigen.values.diag() @ V.T) <= TOLERANCE


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["mlp", "tokens", "conv2d", "called_twice", "conv2d-groups"]),
    fisher=st.sampled_from(["type-2", "mc", "empirical"]),
    approx=st.sampled_from(["expand", "reduce"]),
    joint=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_never_further_away_than_kfac(
    name: str, fisher: Any, approx: Any, joint: bool, seed: int
) -> None:
    network = BY_NAME[name]
    p = {n: t + 0.3 * random(*t.shape, seed=seed) for n, t in parameters(name).items()}
    args = (network, LOSS, p, batches(network.X, LABELS))
    options: dict[str, Any] = {"check_deterministic": False}
    mine: dict[str, Any] = {
        **options,
        "fisher_type": fisher,
        "kfac_approx": approx,
        "separate_weight_and_bias": not joint,
    }
    K, E = (kind(*args, **mine) for kind in (KFACLinearOperator, EKFACLinearOperator))
    exact = {
        "type-2": lambda: GGNLinearOperator(*args, **options),
        "mc": lambda: GGNLinearOperator(*args, mc_samples=1, **options),
        "empirical": lambda: EFLinearOperator(*args, **options),
    }[fisher]()
    for shown in (exact.to_dense(), on_blocks(exact, E)):
        distances = [float((A.to_dense() - shown).norm()) for A in (E, K)]
        assert distances[0] <= distances[1] + 1e-9 * float(shown.norm())


class Bag(nn.Module):
    """Tokens that come several times in a datum, and padding."""

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, padding_idx=padding_idx)
        self.head = nn.Linear(3, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.table(X).cumsum(1).tanh().mean(1))


TOKENS = torch.tensor([[1, 1, 0], [2, 3, 0], [4, 4, 4], [3, 1, 1], [0, 0, 2], [2, 2, 3]])


@pytest.mark.parametrize("padding_idx", [None, 0, -5])
def test_embedding(padding_idx: int | None) -> None:
    """Counts of tokens, a covariance of slopes, and the best eigenvalues."""
    model, y = seeded(lambda: Bag(padding_idx), torch.float64), LABELS[:6]
    args = (model, LOSS, [model.table.weight], [(TOKENS[:2], y[:2]), (TOKENS[2:], y[2:])])
    kept = (
        TOKENS != 0
        if padding_idx is not None
        else torch.ones_like(TOKENS, dtype=torch.bool)
    )
    # slopes of each position by plain autograd on the embedded tokens
    h = model.table.weight.detach()[TOKENS].requires_grad_()
    f = model.head(h.cumsum(1).tanh().mean(1))
    Z = float(LOSS.weight[y[y >= 0]].sum())
    B = torch.zeros(3, 3, dtype=torch.float64)
    sum_loss = nn.CrossEntropyLoss(LOSS.weight, reduction="sum", label_smoothing=0.1)
    for n in range(6):
        H = loss_hessian(sum_loss, f[n : n + 1], y[n : n + 1])
        J = torch.stack([torch.autograd.grad(o, h, retain_graph=True)[0][n] for o in f[n]])
        for t in range(3):
            if kept[n, t]:
                B += J[:, t].T @ H @ J[:, t] / Z
    counts = torch.bincount(TOKENS[kept], minlength=5).double()
    right = torch.kron((counts / counts.sum()).diag(), B)
    K, E = KFACLinearOperator(*args), EKFACLinearOperator(*args)
    assert error(K.to_dense(), right) <= TOLERANCE
    Q = torch.block_diag(*[torch.linalg.eigh(B).eigenvectors] * 5)
    G = GGNLinearOperator(*args).to_dense()
    assert error(E.to_dense(), Q @ (Q.T @ G @ Q).diagonal().diag() @ Q.T) <= TOLERANCE
