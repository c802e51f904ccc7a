"""Trace and row sums of one function's Hessian."""

from __future__ import annotations

import math

import pytest
import torch

from curvop.functional import hessian_row_sum, hessian_trace

torch.manual_seed(0)
A = torch.randn(12, 12, dtype=torch.float64)
A = A + A.T


def quadratic():
    w = torch.randn(12, dtype=torch.float64, requires_grad=True)
    return (lambda: 0.5 * w @ A @ w), w


@pytest.mark.parametrize("sparse", [False, True])
def test_trace_is_unbiased_and_its_error_honest(sparse):
    func, w = quadratic()
    generator = torch.Generator().manual_seed(1)
    runs = [hessian_trace(func, w, 20, sparse, generator) for _ in range(300)]
    values = torch.tensor([r.value for r in runs])
    standard_error = float(values.std()) / len(runs) ** 0.5
    assert abs(float(values.mean()) - float(A.trace())) < 4 * standard_error
    claimed = torch.tensor([r.standard_error for r in runs]).square().mean().sqrt()
    assert 0.85 < float(claimed / values.std()) < 1.15
    covered = [abs(r.value - float(A.trace())) < 3 * r.standard_error for r in runs]
    assert sum(covered) / len(runs) > 0.95


def test_variances_are_as_documented():
    func, w = quadratic()
    off = 2 * (A - A.diag().diag()).square().sum()
    for sparse, variance in ((False, off), (True, off + 9 * A.diag().square().sum())):
        generator = torch.Generator().manual_seed(2)
        run = hessian_trace(func, w, 20_000, sparse, generator)
        assert math.isclose(run.standard_error**2 * 20_000, float(variance), rel_tol=0.1)


def test_trace_of_a_diagonal_hessian_is_exact():
    w = torch.arange(1.0, 5.0, requires_grad=True)
    estimate = hessian_trace(lambda: (w**3).sum(), w, num_samples=3)
    assert float(estimate) == 60.0
    assert estimate.standard_error == 0.0
    assert estimate.num_matvecs == 3
    assert math.isnan(hessian_trace(lambda: (w**3).sum(), w, num_samples=1).standard_error)


def test_trace_generators():
    func, w = quadratic()
    state = torch.get_rng_state()
    first, second = hessian_trace(func, w), hessian_trace(func, w)
    assert first.value != second.value
    assert torch.equal(torch.get_rng_state(), state)
    seeded = [
        hessian_trace(func, [w], generator=torch.Generator().manual_seed(3)).value
        for _ in range(2)
    ]
    assert seeded[0] == seeded[1]
    assert w.grad is None


@pytest.mark.parametrize("num_samples", [0, -1, 1.5])
def test_trace_refuses(num_samples):
    func, w = quadratic()
    with pytest.raises(ValueError, match="number of samples"):
        hessian_trace(func, w, num_samples)


def test_row_sum():
    func, w = quadratic()
    torch.testing.assert_close(hessian_row_sum(func, w), A.sum(1))
    x, y = (torch.tensor(t, requires_grad=True) for t in (1.0, 2.0))
    sums = hessian_row_sum(lambda: x**2 + 2 * x**2 * y - 3 * y**3, (x, y))
    assert [float(s) for s in sums] == [14, -32]
    named = hessian_row_sum(lambda: x**2 * y, {"x": x, "y": y})
    assert {k: float(s) for k, s in named.items()} == {"x": 6, "y": 2}
