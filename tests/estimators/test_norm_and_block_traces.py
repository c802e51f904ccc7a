"""The Frobenius norm, and the traces of blocks."""

from __future__ import annotations

import pytest
import torch

from curvop import DenseLinearOperator, DiagonalLinearOperator
from curvop.estimators import block_traces, frobenius_norm
from tests.comparing import random
from tests.estimators.matrices import N, operator, seeded, watched


def test_norm_of_a_rectangular_matrix():
    A = random(40, 70, seed=1)
    truth = float(A.norm())
    for matrix in (A, A.T):
        e = frobenius_norm(matrix, num_matvecs=30, generator=seeded(0))
        assert e.num_matvecs == 30
        assert abs(e.value - truth) <= 3 * e.standard_error
        exact = frobenius_norm(matrix, num_matvecs=70)
        assert exact.num_matvecs == matrix.shape[1]
        assert exact.value == pytest.approx(truth, rel=1e-13)


def test_norm_of_nothing_is_zero():
    e = frobenius_norm(torch.zeros(150, 150))
    assert e.value == e.standard_error == 0


def test_norm_with_a_tolerance():
    A = operator("indefinite")
    truth = float(A.to_dense().norm())
    e = frobenius_norm(A, tol=0.03 * truth, generator=seeded(0))
    assert e.standard_error <= 0.03 * truth
    assert e.num_matvecs < N
    assert abs(e.value - truth) <= 3 * e.standard_error


def test_one_set_of_probes_serves_all_blocks():
    A = random(60, 60, seed=3)
    shapes = [(5, 4), (), (39,)]
    traces = block_traces(
        DenseLinearOperator(A, domain=shapes, codomain=shapes),
        num_matvecs=40,
        generator=seeded(0),
    )
    assert list(traces) == [0, 1, 2]
    draw = seeded(0)
    V = torch.stack(
        [torch.randint(0, 2, (60,), generator=draw) * 2 - 1 for _ in range(40)], 1
    )
    samples = V * (A @ V.double())
    for e, part in zip(traces.values(), samples.split([20, 1, 39]), strict=True):
        assert e.num_matvecs == 40
        assert e.value == pytest.approx(float(part.sum(0).mean()), rel=1e-12)


def test_block_traces_by_name():
    d = [random(30, 5), random(70)]
    traces = block_traces(DiagonalLinearOperator(d, names=["weight", "bias"]))
    assert list(traces) == ["weight", "bias"]
    for name, b in zip(traces, d, strict=True):
        assert traces[name].value == pytest.approx(float(b.sum()), rel=1e-12)


def test_a_tolerance_bounds_the_largest_error():
    A = operator("flat").to_dense()
    blocks = DenseLinearOperator(A, domain=[(20,), (100,)], codomain=[(20,), (100,)])
    traces = block_traces(blocks, tol=1.5, generator=seeded(0))
    assert max(e.standard_error for e in traces.values()) <= 1.5
    assert traces[0].num_matvecs < N


@pytest.mark.parametrize("estimator", [frobenius_norm, block_traces])
def test_chunks(estimator):
    sizes: list[int] = []
    A = watched(operator("flat").to_dense(), sizes.append)
    estimator(A, num_matvecs=50, chunk_size=6)
    assert max(sizes) == 6
    assert sum(sizes) == 50


@pytest.mark.parametrize("estimator", [frobenius_norm, block_traces])
def test_progress(estimator, capsys):
    estimator(operator("flat"), num_matvecs=40, progressbar=True)
    assert "±" in capsys.readouterr().err
