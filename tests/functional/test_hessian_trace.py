"""Traces with error bars."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from curvop.functional import hessian_trace
from curvop.functional.trace import _probe
from tests.functional.problems import (
    classifier,
    flat,
    randn_like,
)

torch.manual_seed(0)
A = torch.randn(12, 12, dtype=torch.float64)
A = A + A.T


def quadratic():
    """``½ wᵀ A w`` over two parameters."""
    a, b = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (5, 7))

    def func():
        w = torch.cat([a, b])
        return 0.5 * w @ A @ w

    return func, [a, b]


@pytest.mark.parametrize("sparse", [False, True])
def test_is_unbiased_and_its_error_honest(sparse):
    func, params = quadratic()
    generator = torch.Generator().manual_seed(1)
    runs = [
        hessian_trace(func, params, 20, sparse=sparse, generator=generator)
        for _ in range(200)
    ]
    values = torch.tensor([r.value for r in runs])
    standard_error = float(values.std()) / len(runs) ** 0.5
    assert abs(float(values.mean()) - float(A.trace())) < 3 * standard_error
    claimed = torch.tensor([r.standard_error for r in runs]).square().mean().sqrt()
    assert 0.85 < float(claimed / values.std()) < 1.15
    covered = [abs(r.value - float(A.trace())) < 3 * r.standard_error for r in runs]
    assert sum(covered) / len(runs) > 0.95


@pytest.mark.parametrize("sparse", [False, True])
def test_probes_have_unit_covariance(sparse):
    shapes = [torch.empty(3, dtype=torch.float64), torch.empty(1, 4, dtype=torch.float64)]
    generator, n = torch.Generator().manual_seed(3), 5_000
    probes = (_probe(shapes, sparse, generator) for _ in range(n))
    V = torch.stack([torch.cat([b.reshape(-1) for b in probe]) for probe in probes])
    moments = V.T @ V / n
    assert (moments - torch.eye(7)).abs().max() < 4 * math.sqrt(1.5 / n)
    assert V.mean(0).abs().max() < 4 / math.sqrt(n)
    moved = (V != 0).sum(1).unique().tolist()
    assert moved == ([3] if sparse else [7])  # 3 = ⌈7/3⌉


@pytest.mark.parametrize("sparse", [False, True])
def test_variance_is_as_documented(sparse):
    func, params = quadratic()
    P, k = 12, 4 if sparse else 12
    diagonal = A.diag()
    off = 2 * (A - diagonal.diag()).square().sum()
    spread = (diagonal - diagonal.mean()).square().sum()
    variance = P * ((k - 1) * off + (P - k) * spread) / (k * (P - 1))
    run = hessian_trace(
        func, params, 4_000, sparse=sparse, generator=torch.Generator().manual_seed(2)
    )
    assert math.isclose(run.standard_error**2 * 4_000, float(variance), rel_tol=0.1)
    gaussian = 2 * A.square().sum()
    assert variance <= gaussian


def test_trace_of_a_diagonal_hessian_is_exact():
    w = torch.arange(1.0, 5.0, requires_grad=True)
    estimate = hessian_trace(lambda: (w**3).sum(), w, num_samples=3)
    assert float(estimate) == 60.0
    assert estimate.standard_error == 0.0
    assert estimate.num_matvecs == 3


def test_a_scalar_and_an_even_diagonal_are_exact_when_sparse():
    w = torch.tensor(3.0, requires_grad=True)
    assert float(hessian_trace(lambda: w**3, w, 2, sparse=True)) == pytest.approx(18)
    w = torch.ones(9, requires_grad=True, dtype=torch.float64)
    estimate = hessian_trace(lambda: (w**3).sum(), w, 5, sparse=True)
    assert float(estimate) == pytest.approx(54, rel=1e-12)


def test_one_sample_has_no_error_bar():
    func, params = quadratic()
    assert math.isnan(hessian_trace(func, params, num_samples=1).standard_error)


def test_the_error_is_that_of_the_mean_of_the_samples():
    func, params = quadratic()
    generator = torch.Generator().manual_seed(0)
    a, b = (float(hessian_trace(func, params, 1, generator=generator)) for _ in range(2))
    both = hessian_trace(func, params, 2, generator=generator.manual_seed(0))
    assert both.value == pytest.approx((a + b) / 2)
    assert both.standard_error == pytest.approx(abs(a - b) / 2)


def test_func_is_called_once():
    func, params = quadratic()
    evaluations = []

    def counting():
        evaluations.append(1)
        return func()

    hessian_trace(counting, params, num_samples=7)
    assert len(evaluations) == 1


@pytest.mark.parametrize("sparse", [False, True])
def test_generators(sparse):
    func, params = quadratic()
    state = torch.get_rng_state()
    first, second = (hessian_trace(func, params, sparse=sparse) for _ in range(2))
    assert first.value != second.value
    assert torch.equal(torch.get_rng_state(), state)
    seeded, again, other = (
        hessian_trace(
            func, params, sparse=sparse, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (3, 3, 4)
    )
    assert seeded == again
    assert seeded != other


@pytest.mark.parametrize("sparse", [False, True])
def test_create_graph_gives_the_gradient(sparse):
    model, X, y = classifier()
    params = list(model.parameters())

    def estimate(create_graph):
        return hessian_trace(
            lambda: nn.functional.cross_entropy(model(X), y),
            params,
            3,
            create_graph,
            sparse,
            generator=torch.Generator().manual_seed(0),
        )

    found, plain = estimate(True), estimate(False)
    assert found.value.shape == ()
    assert found.value.dtype == torch.float64
    assert float(found) == pytest.approx(plain.value, rel=1e-12)
    assert found.standard_error == pytest.approx(plain.standard_error, rel=1e-9)
    assert str(found) == str(plain)
    slope = flat(torch.autograd.grad(found.value, params))
    direction, step = randn_like(params, seed=1), 1e-5

    def moved(by):
        with torch.no_grad():
            for p, d in zip(params, direction, strict=True):
                p += by * d
        return float(estimate(False))

    difference = (moved(step) - moved(-2 * step)) / (2 * step)
    assert float(slope @ flat(direction)) == pytest.approx(difference, rel=1e-6)


def test_the_gradient_of_a_value_in_single_precision():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    trace = hessian_trace(lambda: (w**3).sum(), w, 8, create_graph=True)
    assert trace.value.dtype == torch.float32
    (w.sum() + trace.value).backward()
    assert w.grad.tolist() == [7, 7]


@pytest.mark.parametrize("num_samples", [0, -1, 1.5])
def test_refuses_a_number_of_samples(num_samples):
    func, params = quadratic()
    with pytest.raises(ValueError, match="number of samples"):
        hessian_trace(func, params, num_samples)


def test_refuses_a_seed():
    func, params = quadratic()
    with pytest.raises(TypeError, match="manual_seed"):
        hessian_trace(func, params, generator=3)
