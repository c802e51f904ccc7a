"""Estimates commute with ``A -> c A``, value and standard error, for the same probes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from curvop import (
    assume_psd,
    assume_symmetric,
    block_traces,
    diagonal,
    effective_dimension,
    frobenius_norm,
    logdet,
    trace,
    trace_function,
)
from curvop.estimators.moments import mean_and_error, no_moments, with_samples
from curvop.operators import BlockDiagonalLinearOperator
from tests.comparing import random
from tests.solvers.matrices import with_spectrum

N = 48
SINGLE = [-100, -80, -54, -20, 34, 66, 84, 100]  # 1e-30 to 1e30
DOUBLE = [-664, -332, 332, 664]  # 1e-200 to 1e200
SCALES = [
    *(pytest.param(torch.float32, e, id=f"single, 2^{e}") for e in SINGLE),
    *(pytest.param(torch.float64, e, id=f"double, 2^{e}") for e in DOUBLE),
]
scales = pytest.mark.parametrize(("dtype", "e"), SCALES)
SPECTRA = {
    "condition 3": torch.linspace(1, 3, N, dtype=torch.float64),
    "fast decay": torch.logspace(0, -6, N, dtype=torch.float64),
}

Numbers = tuple[Tensor, Tensor, int]
"""Values, errors, products."""


def seeded() -> Generator:
    return Generator().manual_seed(3)


def number(estimate: Any) -> Numbers:
    return (
        torch.as_tensor(estimate.value, dtype=torch.float64),
        torch.as_tensor(estimate.standard_error, dtype=torch.float64),
        estimate.num_matvecs,
    )


def traces(A: Any, c: float) -> Numbers:
    half = N // 2
    dense = A.to_dense()
    corners = dense[:half, :half], dense[half:, half:]
    blocks = BlockDiagonalLinearOperator([assume_symmetric(block) for block in corners])
    found = [
        number(e) for e in block_traces(blocks, num_matvecs=20, generator=seeded()).values()
    ]
    values, errors, n = zip(*found, strict=True)
    return torch.stack(values), torch.stack(errors), n[0]


# what is found of c A, and the power of c that it has
LINEAR: dict[str, Callable[[Any, float], Numbers]] = {
    **{
        f"trace, {method}, {n}": lambda A, c, method=method, n=n: number(
            trace(A, method=method, num_matvecs=n, generator=seeded())
        )
        for method in ("hutchinson", "hutch++", "xtrace")
        for n in (4, 24, 2 * N)
    },
    "trace, hutch++, tol": lambda A, c: number(
        trace(A, tol=2 * c, num_matvecs=40, generator=seeded())
    ),
    "trace, hutchinson, tol": lambda A, c: number(
        trace(A, tol=2 * c, method="hutchinson", generator=seeded())
    ),
    **{
        f"diagonal, {method}, {n}": lambda A, c, method=method, n=n: number(
            diagonal(A, method=method, num_matvecs=n, generator=seeded())
        )
        for method in ("hutchinson", "xdiag")
        for n in (4, 24, 2 * N)
    },
    "block_traces": traces,
    "frobenius_norm": lambda A, c: number(
        frobenius_norm(A, num_matvecs=20, generator=seeded())
    ),
    "frobenius_norm, exact": lambda A, c: number(frobenius_norm(A, generator=seeded())),
    "frobenius_norm, tol": lambda A, c: number(
        frobenius_norm(A, tol=0.5 * c, num_matvecs=40, generator=seeded())
    ),
    "trace_function": lambda A, c: number(
        trace_function(A, lambda x: 3 * x, num_matvecs=40, generator=seeded())
    ),
}
CONSTANT: dict[str, Callable[[Any, float], Numbers]] = {
    "effective_dimension": lambda A, c: number(
        effective_dimension(A, 0.5 * c, num_matvecs=100, generator=seeded())
    ),
    "logdet": lambda A, c: number(
        logdet(A, damping=0.5 * c, num_matvecs=100, generator=seeded())
    ),
    "logdet, undamped": lambda A, c: number(logdet(A, num_matvecs=100, generator=seeded())),
}


def truth(name: str, A: Tensor) -> Tensor:
    """From the dense matrix."""
    values = torch.linalg.eigvalsh(A)
    if name.startswith("diagonal"):
        return A.diagonal()
    if name == "block_traces":
        d = A.diagonal()
        return torch.stack([d[: N // 2].sum(), d[N // 2 :].sum()])
    return {
        "trace": values.sum(),
        "frobenius_norm": (A * A).sum().sqrt(),
        "trace_function": 3 * values.sum(),
        "effective_dimension": (values / (values + 0.5)).sum(),
        "logdet": ((values + 0.5) if name == "logdet" else values).log().sum(),
    }[name.split(",")[0]]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", LINEAR)
@scales
def test_estimates_scale(name: str, spectrum: str, dtype: torch.dtype, e: int) -> None:
    """To the last bit for a power of two, and the error covers the truth."""
    A, c = with_spectrum(SPECTRA[spectrum]), math.ldexp(1.0, e)
    one, one_error, one_count = LINEAR[name](assume_psd(A.to(dtype)), 1.0)
    value, error, count = LINEAR[name](assume_psd((A * c).to(dtype)), c)
    assert count == one_count
    if name == "trace_function":  # LAPACK scales very large and small matrices
        torch.testing.assert_close(value / c, one, rtol=1e-12, atol=0)
        torch.testing.assert_close(error / c, one_error, rtol=1e-4, atol=0)
    else:
        assert torch.equal(value / c, one)
        assert torch.equal(error / c, one_error)
    assert bool((error > 0).all())
    covered = (one - truth(name, A)).abs() <= 4 * one_error
    assert float(covered.double().mean()) > 0.95  # of 48 entries two may be outside


@pytest.mark.parametrize("name", CONSTANT)
@scales
def test_traces_of_functions_scale(name: str, dtype: torch.dtype, e: int) -> None:
    """``log det c A`` is ``N log c`` more; the effective dimension is the same."""
    A, c = with_spectrum(SPECTRA["condition 3"]), math.ldexp(1.0, e)
    one, one_error, one_count = CONSTANT[name](assume_psd(A.to(dtype)), 1.0)
    value, error, count = CONSTANT[name](assume_psd((A * c).to(dtype)), c)
    shift = N * math.log(c) if "logdet" in name else 0.0
    assert count == one_count
    torch.testing.assert_close(value - shift, one, rtol=1e-4, atol=0)
    assert float((value - shift - truth(name, A)).abs()) <= 4 * float(error)
    assert bool((error > 0).all())
    if not shift:
        torch.testing.assert_close(error, one_error, rtol=1e-2, atol=0)


@pytest.mark.parametrize("e", [-300, 300])
def test_functions_of_any_size(e: int) -> None:
    """The third powers of samples of 1e±270 are not numbers; those of their ratios are."""
    A, c = assume_psd(with_spectrum(SPECTRA["fast decay"])), math.ldexp(1.0, 3 * e)
    one = trace_function(A, lambda x: x, num_matvecs=60, generator=seeded())
    found = trace_function(A, lambda x: c * x, num_matvecs=60, generator=seeded())
    assert found.value / c == one.value
    assert found.standard_error / c == pytest.approx(one.standard_error, rel=1e-12)


def test_slack_of_samples_that_are_zero() -> None:
    """Truncation may be all that there is."""
    like = torch.zeros((), dtype=torch.float64)
    zeros, slack = torch.zeros(3, dtype=torch.float64), torch.full((3,), 20.0).double()
    state = with_samples(no_moments(like), zeros, slack)
    state = with_samples(state, zeros, slack)
    mean, error = mean_and_error(state)
    assert (float(mean), float(error)) == (0.0, 20.0)


@pytest.mark.parametrize("e", [-30, -15, 15, 30])
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_blocks_of_different_scales(method: Any, e: int) -> None:
    """The small entries of a diagonal have errors of their own size."""
    A = with_spectrum(SPECTRA["condition 3"])
    both = torch.block_diag(A, A * 10.0**e).float()
    found = diagonal(both, method=method, num_matvecs=40, generator=seeded())
    exact = diagonal(both, num_matvecs=4 * N, generator=seeded())
    truth = torch.cat([A.diagonal(), A.diagonal() * 10.0**e])
    scale = torch.cat([torch.ones(N), torch.full((N,), 10.0**e)]).double()
    assert bool(((found.value - truth).abs() <= 6 * found.standard_error).all())
    torch.testing.assert_close(exact.value / scale, truth / scale, rtol=1e-5, atol=0)
    if method == "hutchinson":  # each row has errors of its own; a sketch mixes them
        assert bool((found.standard_error / scale < 2).all())


@pytest.mark.parametrize("tol", [1e-200, 1e200])
def test_tolerances_far_from_the_matrix(tol: float) -> None:
    """The number of samples that they need is infinite, or none."""
    A = assume_psd(random(N, N, seed=1).square() * 1.0)
    assert trace(A, tol=tol, generator=seeded()).value > 0
    large = trace(A.to_dense() * 1e150, tol=tol, num_matvecs=40, generator=seeded())
    assert math.isfinite(large.value)


def test_the_frobenius_norm_of_columns_of_all_sizes() -> None:
    """In whatever order they come."""
    d = torch.logspace(-200, 150, 200, dtype=torch.float64)
    found = frobenius_norm(torch.diag(d), num_matvecs=200, generator=seeded())
    assert found.value == pytest.approx(1e150 * float((d / 1e150).norm()), rel=1e-12)
