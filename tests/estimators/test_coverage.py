"""Three standard errors cover the truth in 95 % of the runs, and are not too wide."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from curvop import LinearOperator
from curvop.estimators import (
    block_traces,
    diagonal,
    effective_dimension,
    frobenius_norm,
    logdet,
    trace,
    trace_function,
)
from tests.estimators.matrices import SPECTRA, operator, seeded

RUNS = 200
WIDE = {"chunk_size": 32}  # fewer, larger products

Run = Callable[[LinearOperator, Generator], tuple[object, object]]


def check(
    name: str, run: Run, truth: object, runs: int = RUNS, widest: float = 2.5
) -> None:
    """Run with many seeds; of a vector each entry must be covered."""
    A = operator(name)
    values, errors = zip(*(run(A, seeded(seed)) for seed in range(runs)), strict=True)
    values, errors = (
        torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in column])
        for column in (values, errors)
    )
    off = (values - torch.as_tensor(truth, dtype=torch.float64)).abs()
    covered = (off <= 3 * errors).double().mean(0)
    assert float(covered.min()) >= 0.95
    # of the same size as what they claim to be; wider for few and skew samples
    ratio = errors.square().mean().sqrt() / off.square().mean().sqrt()
    assert 0.8 < float(ratio) < widest


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
class TestTrace:
    def test_with_a_number_of_products(self, name, method):
        def run(A, generator):
            e = trace(A, method=method, num_matvecs=48, generator=generator, **WIDE)
            assert e.num_matvecs == 48
            return e.value, e.standard_error

        check(name, run, SPECTRA[name].sum())

    def test_with_a_tolerance(self, name, method):
        # tight enough to take more products than the first look, fewer than all
        quick = name == "decaying" and method != "hutchinson"
        tol = float(SPECTRA[name].norm()) * (0.04 if quick else 0.17)

        def run(A, generator):
            e = trace(A, method=method, tol=tol, generator=generator, **WIDE)
            assert e.standard_error <= tol
            return e.value, e.standard_error

        check(name, run, SPECTRA[name].sum())


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
@pytest.mark.parametrize("how", ["products", "tol"])
def test_diagonal(name, method, how):
    d = operator(name).to_dense().diag()
    options = {"num_matvecs": 40}
    if how == "tol":
        options = {"tol": 0.4 * float(d.abs().max())}

    def run(A, generator):
        e = diagonal(A, method=method, generator=generator, **options, **WIDE)
        return e.value, e.standard_error

    check(name, run, d)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("how", ["products", "tol"])
def test_frobenius_norm(name, how):
    truth = SPECTRA[name].norm()
    options = {"num_matvecs": 30} if how == "products" else {"tol": 0.04 * float(truth)}

    def run(A, generator):
        e = frobenius_norm(A, generator=generator, **options, **WIDE)
        return e.value, e.standard_error

    check(name, run, truth)


def test_block_traces():
    A = operator("indefinite").to_dense()
    shapes = [(10, 4), (1,), (79,)]
    truth = torch.stack([d.sum() for d in A.diag().split([40, 1, 79])])

    def run(A, generator):
        blocks = type(A)(A.to_dense(), domain=shapes, codomain=shapes)
        e = block_traces(blocks, num_matvecs=30, generator=generator, **WIDE).values()
        return [x.value for x in e], [x.standard_error for x in e]

    check("indefinite", run, truth)


FUNCTIONS: dict[str, tuple[str, Callable[..., object], Callable[[Tensor], Tensor]]] = {
    "logdet-flat": ("flat", logdet, torch.log),
    "logdet-damped": (
        "decaying",
        lambda A, **o: logdet(A, damping=1e-3, **o),
        lambda x: (x + 1e-3).log(),
    ),
    "dimension": (
        "decaying",
        lambda A, **o: effective_dimension(A, 1e-3, **o),
        lambda x: x / (x + 1e-3),
    ),
    "absolute": (
        "indefinite",
        lambda A, **o: trace_function(A, torch.abs, **o),
        torch.abs,
    ),
    "exponential": (
        "indefinite",
        lambda A, **o: trace_function(A, lambda x: (x / 5).exp(), **o),
        lambda x: (x / 5).exp(),
    ),
}


@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("num_matvecs", [60, 240])
def test_functions(which, num_matvecs):
    name, estimator, f = FUNCTIONS[which]

    def run(A, generator):
        e = estimator(A, num_matvecs=num_matvecs, generator=generator, **WIDE)
        assert e.num_matvecs <= num_matvecs
        return e.value, e.standard_error

    # with six steps truncation is all, and known less well
    runs, widest = (RUNS, 10) if num_matvecs == 60 else (60, 2.5)
    check(name, run, f(SPECTRA[name]).sum(), runs, widest)


@pytest.mark.parametrize("which", FUNCTIONS)
def test_functions_with_a_tolerance(which):
    name, estimator, f = FUNCTIONS[which]
    f_values = f(SPECTRA[name])
    tol = 0.3 * float((f_values - f_values.mean()).norm())

    def run(A, generator):
        e = estimator(A, tol=tol, generator=generator, **WIDE)
        assert e.standard_error <= tol
        return e.value, e.standard_error

    check(name, run, f_values.sum(), runs=60)
