"""Where the columns come from: gradients at the targets, samples, or nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import GGNLinearOperator
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.comparing import error, random
from tests.kronecker import reference
from tests.kronecker.networks import BY_NAME, NETWORKS, Network, Params, linear, parameters
from tests.kronecker.networks import tensors as made
from tests.kronecker.test_definition import (
    LABELS,
    LOSS,
    batches,
    data_of,
    divisor,
    expected,
    summed,
)

TOLERANCE = 1e-10


def gradients(f: Tensor, y: Tensor) -> Tensor:
    """One column: the slope of the summed loss of a datum."""
    leaf = f.detach().requires_grad_()
    (g,) = torch.autograd.grad(summed(LOSS)(leaf, y), leaf)
    return g.reshape(-1, 1)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_empirical(network: Network, approx: str) -> None:
    p = parameters(network.name)
    K = KFACLinearOperator(
        network,
        LOSS,
        p,
        batches(network.X, LABELS),
        fisher_type="empirical",
        kfac_approx=approx,
    )
    right = expected(network, p, LOSS, LABELS, reduce=approx == "reduce", S=gradients)
    assert error(K.to_dense(), right) <= TOLERANCE


def per_token() -> Network:
    """A prediction ``[N, C, T]`` with a loss term for each token; tokens mix."""

    def forward(p: Params, X: Tensor, note: Any) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X, note))
        return linear(p, "V", None, h + 0.5 * h.roll(1, 1), note).transpose(1, 2)

    shapes = {"W": (3, 2), "b": (3,), "V": (3, 3)}
    return Network("per_token", lambda: made(**shapes), forward, random(7, 2, 2))


TOKENS = torch.tensor([[0, 1], [1, -100], [-100, -100], [2, 2], [0, 0], [1, 2], [2, 0]])


def terms(f: Tensor, y: Tensor) -> Tensor:
    """One column for each loss term of a datum."""
    leaf = f.detach().requires_grad_()
    loss = nn.CrossEntropyLoss(
        LOSS.weight, ignore_index=-100, label_smoothing=0.1, reduction="none"
    )
    rows = [
        torch.autograd.grad(t, leaf, retain_graph=True)[0].flatten()
        for t in loss(leaf, y).flatten()
    ]
    return torch.stack(rows, 1)


@pytest.mark.parametrize(("per", "S"), [("term", terms), ("example", gradients)])
def test_what_has_a_gradient_of_its_own(per: Any, S: Any) -> None:
    network = per_token()
    p = network.params()
    K = KFACLinearOperator(
        network, LOSS, p, batches(network.X, TOKENS), fisher_type="empirical", per=per
    )
    assert error(K.to_dense(), expected(network, p, LOSS, TOKENS, S=S)) <= TOLERANCE


@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_loss_terms_for_each_token(approx: str) -> None:
    """Tokens that mix have columns of their own; ignored ones add nothing."""
    network = per_token()
    p = network.params()
    data = batches(network.X, TOKENS)
    K = KFACLinearOperator(network, LOSS, p, data, kfac_approx=approx)
    right = expected(network, p, LOSS, TOKENS, reduce=approx == "reduce")
    assert error(K.to_dense(), right) <= TOLERANCE
    together = KFACLinearOperator(
        network, LOSS, p, data, kfac_approx=approx, terms_together=True
    )
    assert error(together.to_dense(), right) > 1e-3
    right = expected(network, p, LOSS, TOKENS, reduce=approx == "reduce", S=common)
    assert error(together.to_dense(), right) <= TOLERANCE


def common(f: Tensor, y: Tensor) -> Tensor:
    """A column for each class, of all tokens: no class is special."""
    assert LOSS.weight is not None
    p = f.softmax(1)  # [1, C, T]
    parts = LOSS.weight[y.clamp_min(0)] * 0.9 + LOSS.weight.sum() * 0.1 / len(p[0])
    a = torch.where(y == -100, 0.0, parts)
    units = torch.eye(len(p[0]), dtype=p.dtype)[..., None]
    columns = (a[:, None] * p).sqrt().movedim(1, 0) * (units - p)  # [C, C, T]
    return columns.flatten(1).T.detach()


def test_common_columns_are_exact_where_tokens_do_not_mix() -> None:
    def forward(p: Params, X: Tensor, note: Any) -> Tensor:
        h = torch.tanh(linear(p, "W", "b", X, note))
        return linear(p, "V", None, h, note).transpose(1, 2)

    network = Network("apart", per_token().params, forward, random(7, 2, 2))
    p, data = network.params(), batches(network.X, TOKENS)
    K, right = (
        KFACLinearOperator(network, LOSS, p, data, terms_together=t) for t in (True, False)
    )
    assert error(K.to_dense(), right.to_dense()) <= TOLERANCE


@pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
@pytest.mark.parametrize("cuts", [(7,), (1, 6), (2, 2, 3)])
def test_samples_do_not_depend_on_batches_and_leave_the_generator(
    kind: Any, cuts: tuple[int, ...]
) -> None:
    network, p = BY_NAME["tokens"], parameters("tokens")
    options: dict[str, Any] = {"fisher_type": "mc", "mc_samples": 2}
    before = torch.get_rng_state()
    K = kind(network, LOSS, p, batches(network.X, LABELS, cuts), **options)
    assert torch.equal(before, torch.get_rng_state())
    right = kind(network, LOSS, p, batches(network.X, LABELS), **options)
    assert error(K.to_dense(), right.to_dense()) <= TOLERANCE
    other = kind(network, LOSS, p, batches(network.X, LABELS), seed=3, **options)
    assert error(other.to_dense(), right.to_dense()) > 1e-3


def test_samples_are_unbiased() -> None:
    """The mean over seeds is the exact one, within five standard errors."""
    network, p = BY_NAME["mlp"], parameters("mlp")
    data = batches(network.X, LABELS)
    exact = KFACLinearOperator(network, LOSS, p, data).to_dense()
    draws = torch.stack(
        [
            KFACLinearOperator(
                network,
                LOSS,
                p,
                data,
                fisher_type="mc",
                seed=seed,
                check_deterministic=False,
            ).to_dense()
            for seed in range(150)
        ]
    )
    error_of_mean = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - exact).abs() <= 5 * error_of_mean + 1e-12).all())


@pytest.mark.parametrize("joint", [False, True])
def test_forward_only_has_the_identity_for_slopes(joint: bool) -> None:
    network, p = BY_NAME["tokens"], parameters("tokens")
    K = KFACLinearOperator(
        network,
        LOSS,
        p,
        batches(network.X, LABELS),
        fisher_type="forward-only",
        separate_weight_and_bias=not joint,
    )
    z = network.X.reshape(-1, 2)
    h = torch.tanh(network.X @ p["W"].T + p["b"]).detach()
    h = (h + h.roll(1, 1) * 0.5).reshape(-1, 4)
    if joint:
        z = torch.cat([z, torch.ones(len(z), 1).double()], 1)
    blocks = [torch.kron(torch.eye(4).double(), z.T @ z / len(z))]
    if joint:
        at = torch.arange(12).reshape(4, 3)
        order = torch.cat([at[:, :2].flatten(), at[:, 2]])
        blocks = [blocks[0][order][:, order]]
    else:
        blocks.append(torch.eye(4).double())
    blocks.append(torch.kron(torch.eye(3).double(), h.T @ h / len(h)))
    assert error(K.to_dense(), torch.block_diag(*blocks)) <= TOLERANCE
    with pytest.raises(ValueError, match="forward-only"):
        EKFACLinearOperator(
            network, LOSS, p, batches(network.X, LABELS), fisher_type="forward-only"
        )


def test_factors_in_double_precision() -> None:
    """Of a model in single precision, to the precision of its slopes."""
    network, p = BY_NAME["mlp"], parameters("mlp")
    single = {n: t.detach().float().requires_grad_() for n, t in p.items()}
    X, loss = network.X.float(), nn.CrossEntropyLoss(LOSS.weight.float())
    K = KFACLinearOperator(
        network, loss, single, batches(X, LABELS), factor_dtype=torch.float64
    )
    assert K.dtype == torch.float32
    assert all(b.left.dtype == torch.float64 for b in K.factors.blocks)
    z = X.double()
    W = next(b for b in K.factors.blocks if b.members.positions == (0,))
    assert error(W.right[0], z.T @ z / len(z)) <= 1e-15
    D = K.to_dense().double()
    x = random(len(D)).float()
    inverse = K.inverse(1e-3)
    assert error((D @ (y := (inverse @ x).double())) + 1e-3 * y, x) <= 1e-3


def test_matches_the_divisor_of_the_sum() -> None:
    """The sum is ``Z`` times the mean."""
    network, p = BY_NAME["mlp"], parameters("mlp")
    Z = divisor(LOSS, network(p, network.X), LABELS)
    for kind in (KFACLinearOperator, EKFACLinearOperator):
        mean, total = (
            kind(network, loss, p, batches(network.X, LABELS)).to_dense()
            for loss in (LOSS, summed(LOSS))
        )
        assert error(total, Z * mean) <= TOLERANCE


def test_reference_agrees_with_the_ggn_for_one_datum() -> None:
    """The reference itself."""
    network, p = BY_NAME["mlp"], parameters("mlp")
    X, y = network.X[:1], LABELS[:1]
    Z = divisor(LOSS, network(p, X), y)
    right = reference.kfac(network, p, summed(LOSS), data_of(X), data_of(y), Z)
    G = GGNLinearOperator(network, LOSS, p, [(X, y)], block_sizes=[1] * 4).to_dense()
    assert error(right, G) <= TOLERANCE
