"""The Monte-Carlo Fisher: unbiased, and the same matrix at every product."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvop import GGNLinearOperator, register_predictive
from curvop.curvature.output_factor import output_factor
from curvop.risk import predictive
from curvop.risk.losses import as_loss
from curvop.risk.random_numbers import fingerprints, uniform
from tests.cases.linearized import linearized_as

from . import dense
from .loss_cases import CASES, LossCase, N, X, operator, truth

KNOWN = [
    case for case in CASES if predictive.has_predictive(as_loss(case.loss, case.reduction))
]


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.name)
def test_mean_over_seeds_is_the_ggn(case: LossCase) -> None:
    """Within 5 standard errors, entry by entry, from 1,000 samples."""
    model, loss = case.model.double(), as_loss(case.loss, case.reduction)
    with torch.no_grad():
        f = model(X)
    J = dense.jacobian(model, list(model.parameters()), X)  # [N·m, P]
    Z = 1.0 if loss.reduction == "sum" else float(loss.divisor(f, case.y))
    drawn = []
    for seed in range(10):
        S = output_factor(
            loss, f, case.y, num_data=N, kind="mc", mc_samples=100, seed=seed, X=X
        )
        s = 10 * S.columns(slice(None)).reshape(100, N, -1)
        g = torch.einsum("rnm,nmp->rnp", s, J.reshape(N, -1, J.shape[1]))
        drawn.append(torch.einsum("rnp,rnq->rpq", g, g) / Z)
    samples = torch.cat(drawn)
    error = samples.std(0) / len(samples) ** 0.5
    G = truth("ggn", case)
    assert bool(((samples.mean(0) - G).abs() <= 5 * error + 1e-12 * G.abs().max()).all())


def test_known_losses_are_there() -> None:
    kinds = {as_loss(case.loss, case.reduction).kind for case in KNOWN}
    assert {nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss} <= kinds
    assert nn.PoissonNLLLoss in kinds


def sampled(case: LossCase, parts: list[list[int]], way: str, **options: Any) -> Any:
    options = {"mc_samples": 3, "check_deterministic": False, **options}
    return operator("ggn", case, parts, way, **options)


@pytest.mark.parametrize("case", KNOWN[::7], ids=lambda case: case.name)
@given(st.permutations(range(N)), st.sets(st.integers(1, N - 1)))
@settings(max_examples=3, deadline=None, derandomize=True, database=None)
def test_batching_and_order_play_no_role(
    case: LossCase, order: list[int], cuts: set[int]
) -> None:
    ends = sorted(cuts)
    parts = [order[i:j] for i, j in zip([0, *ends], [*ends, N], strict=True)]
    whole = sampled(case, [list(range(N))], "func").to_dense()
    for way in ("func", "backpack"):
        assert dense.relative_error(sampled(case, parts, way).to_dense(), whole) <= 1e-8


def problem(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    X, y = dense.normal(8, 3).to(dtype), dense.integers(3, 8)
    data = [(X[:5], y[:5]), (X[5:], y[5:])]
    return model, nn.CrossEntropyLoss(), list(model.parameters()), data


def test_the_same_matrix_at_every_product() -> None:
    F_ = GGNLinearOperator(*problem(), mc_samples=2)
    state = torch.get_rng_state()
    A = F_.to_dense()
    assert torch.equal(A, F_.to_dense())
    assert torch.equal(state, torch.get_rng_state())
    assert F_.psd
    assert float(torch.linalg.eigvalsh(A).min()) >= -1e-14
    assert not torch.allclose(
        A, GGNLinearOperator(*problem(), mc_samples=2, seed=1).to_dense()
    )


def test_dense_by_the_formula() -> None:
    model, loss, params, data = problem()
    A = GGNLinearOperator(model, loss, params, data, mc_samples=4).to_dense()
    X, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    f = model(X).detach()
    S = output_factor(
        as_loss(loss), f, y, num_data=8, kind="mc", mc_samples=4, X=X
    ).columns(slice(None))
    J = dense.jacobian(model, params, X).reshape(8, 3, -1)
    V = torch.einsum("rnm,nmp->rnp", S, J).flatten(0, 1)
    assert dense.relative_error(A, V.T @ V / 8) <= 1e-12


@pytest.mark.parametrize("form", ["rows", "factored"])
def test_forms_without_a_pass(form: str) -> None:
    A = GGNLinearOperator(*problem(), mc_samples=2)
    L = linearized_as(A, form)
    assert dense.relative_error(L.to_dense(), A.to_dense()) <= 1e-12


@pytest.mark.parametrize("form", ["recorded", "graphs"])
def test_linearised(form: str) -> None:
    A = GGNLinearOperator(*problem(), mc_samples=2)
    L = A.linearize(num_products=100 if form == "recorded" else 1)
    assert L.form == form
    assert dense.relative_error(L.to_dense(), A.to_dense()) <= 1e-12


def laplace(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """A loss without a Hessian, of which the Fisher is known: the identity."""
    terms = (prediction - y).abs()
    return terms if reduction == "none" else getattr(terms, reduction)()


def test_a_registered_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictive, "_registered", {})
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    X = dense.normal(400, 2)
    args = (lambda X: X @ w, laplace, [w], [(X, torch.zeros(400).double())])
    with pytest.raises(ValueError, match="register_predictive"):
        GGNLinearOperator(*args, mc_samples=1)
    register_predictive(
        laplace, lambda f, y, u: torch.distributions.Laplace(f, 1.0).icdf(u)
    )
    A = GGNLinearOperator(*args, mc_samples=1).to_dense()
    assert dense.relative_error(A, X.T @ X / 400) <= 1e-12
    partial = functools.partial(laplace, reduction="sum")
    args = (args[0], partial, *args[2:])
    B = GGNLinearOperator(*args, mc_samples=1).to_dense()
    assert dense.relative_error(B, 400 * A) <= 1e-12


class Pair(nn.Module):
    """A Gaussian with predicted mean and logarithm of the scale."""

    reduction = "mean"

    def forward(self, prediction: dict[str, Tensor], y: Tensor) -> Tensor:
        mean, log = prediction["mean"], prediction["log"]
        terms = ((y - mean) / log.exp()) ** 2 / 2 + log
        return terms if self.reduction == "none" else getattr(terms, self.reduction)()


def test_a_prediction_of_several_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Fisher of a Gaussian: diag(1/σ², 2) in mean and log σ."""
    monkeypatch.setattr(predictive, "_registered", {})
    register_predictive(
        Pair, lambda f, y, u: f["mean"] + f["log"].exp() * torch.special.ndtri(u)
    )
    w = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)

    def model(X: Tensor) -> dict[str, Tensor]:
        return {"mean": X * w[0], "log": 0 * X + w[1]}

    X = dense.normal(50)
    op = GGNLinearOperator(model, Pair(), [w], [(X, X)], mc_samples=4000, num_data=50)
    A, var = op.to_dense(), float(w.detach()[1].exp() ** 2)
    exact = torch.tensor([float((X**2).mean()) / var, 2.0]).double().diag()
    assert dense.relative_error(A, exact) <= 0.05


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mc_samples": -1}, ValueError, "at least 0"),
        ({"mc_samples": 1.5}, TypeError, "integer"),
        ({"mc_samples": True}, TypeError, "integer"),
        ({"seed": None}, TypeError, "integer"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        GGNLinearOperator(*problem(), **options)


def test_bad_registration() -> None:
    with pytest.raises(TypeError, match="callable"):
        register_predictive(nn.MSELoss, 3)  # type: ignore[arg-type]
    model, _, params, data = problem()
    with pytest.raises(ValueError, match="NLLLoss"):
        GGNLinearOperator(model, nn.NLLLoss(), params, data, mc_samples=1)


# ------------------------------------------------------------------ random numbers


def test_numbers_are_uniform_and_independent() -> None:
    at = fingerprints(torch.arange(20_000.0).reshape(-1, 1), 20_000)
    u = uniform(at, 0, 0, 4)
    assert len(at.unique()) == 20_000
    assert bool((u > 0).all() and (u < 1).all())
    assert float((u.mean(0) - 0.5).abs().max()) <= 5 * (1 / 12 / 20_000) ** 0.5
    others = (uniform(at, 1, 0, 4), uniform(at, 0, 1, 4), u.roll(1, 0))
    C = torch.corrcoef(torch.cat([u, *others], 1).T) - torch.eye(16)
    assert float(C.abs().max()) <= 5 / 20_000**0.5


@pytest.mark.parametrize("make", [torch.Tensor.half, torch.Tensor.int, torch.Tensor.bool])
def test_content_of_every_type_counts(make: Callable[[Tensor], Tensor]) -> None:
    x = make(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    at = fingerprints({"x": x, "all": torch.ones(3)}, 4)
    assert at[0] == at[2]
    assert len(at.unique()) == 3


def test_samples_of_cross_entropy_have_the_right_frequencies() -> None:
    f = torch.tensor([[0.0, 1.0, -2.0]]).double().expand(50_000, 3)
    X = torch.arange(50_000).reshape(-1, 1)
    loss = as_loss(F.cross_entropy)
    S = output_factor(
        loss, f, torch.zeros(50_000, dtype=torch.long), num_data=50_000, kind="mc", X=X
    ).columns(slice(None))[0]
    p = f[0].softmax(0)
    drawn = (S + p).round()
    error = (p * (1 - p) / 50_000).sqrt()
    assert bool(((drawn.mean(0) - p).abs() <= 5 * error).all())
