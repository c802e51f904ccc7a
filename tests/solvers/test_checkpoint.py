"""A run of cg that was killed or interrupted continues to the same result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from curvop import DenseLinearOperator, cg, jacobi_preconditioner
from curvop.checkpoint import EVERY
from tests.comparing import random
from tests.solvers.killed import solve
from tests.solvers.matrices import Watched, interrupted, positive, spoiled

ROOT = Path(__file__).parents[2]
KILLS = 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_random_moments_comes_to_the_same_bits(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "tests.solvers.killed"]
    run = subprocess.run(
        [*command, str(tmp_path), str(KILLS), "0"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    kills = int(run.stdout)
    assert kills >= 10  # it may have come to its end before the last
    got, truth = torch.load(tmp_path / "solution.pt"), solve()
    assert got["status"] == truth.status == "converged"
    assert got["iterations"] == truth.iterations
    for name in ("x", "history", "residual_norm"):
        assert torch.equal(got[name], getattr(truth, name)), name
    # each life repeats a few products, and takes one to know the matrix
    products = (tmp_path / "products").stat().st_size
    assert products <= truth.iterations + 5 + kills * (EVERY + 2)


@pytest.mark.parametrize("at", [2, 3, 6, 7, 12, 23, 40])
def test_interrupted_at_any_product_and_continued(tmp_path, at):
    matrix, b = positive(60, 1e3), random(60, 2)
    truth = cg(Watched(matrix), b)
    A = Watched(matrix, at={at: interrupted})
    path = tmp_path / "cg.pt"
    first = cg(A, b, checkpoint=path)
    assert first.status == "interrupted"
    assert first.iterations == at - 2  # one product to know the matrix, one interrupted
    assert first.history.shape == (first.iterations + 1, 2)
    residual = (b - matrix @ first.x).norm(dim=0)
    torch.testing.assert_close(first.residual_norm, residual, rtol=1e-9, atol=0)

    A = Watched(matrix)
    second = cg(A, b, checkpoint=path)
    assert second.status == "converged"
    assert torch.equal(second.x, truth.x)
    assert torch.equal(second.history, truth.history)
    assert A.products <= truth.iterations - first.iterations + 5


def test_interrupted_without_a_checkpoint():
    A = Watched(positive(60, 1e3), at=dict.fromkeys(range(9, 999), interrupted))
    solution = cg(A, random(60))
    assert (solution.status, solution.iterations) == ("interrupted", 8)


def test_nan_names_the_iteration_and_does_not_poison_the_checkpoint(tmp_path):
    matrix, b, path = positive(60, 1e3), random(60), tmp_path / "cg.pt"
    for value in (float("nan"), float("inf"), -float("inf")):
        A = Watched(matrix, at={14: spoiled(value)})  # iteration 13
        with pytest.raises(FloatingPointError, match="in iteration 13"):
            cg(A, b, checkpoint=path)
        A = Watched(matrix)
        assert torch.equal(cg(A, b, checkpoint=path).x, cg(Watched(matrix), b).x)
        path.unlink()


def test_an_error_of_the_operator_leaves_the_checkpoint(tmp_path):
    def fail(_):
        raise MemoryError

    matrix, b, path = positive(60, 1e3), random(60), tmp_path / "cg.pt"
    with pytest.raises(MemoryError):
        cg(Watched(matrix, at={20: fail}), b, checkpoint=path)
    A = Watched(matrix)
    solution = cg(A, b, checkpoint=path)
    assert torch.equal(solution.x, cg(Watched(matrix), b).x)
    assert A.products <= solution.iterations - 20 + EVERY + 5


def test_a_finished_run_is_not_run_again(tmp_path):
    A, b, path = Watched(positive(60, 1e3)), random(60), tmp_path / "cg.pt"
    first, before = cg(A, b, checkpoint=path), A.products
    again = cg(A, b, checkpoint=path)
    assert A.products == before + 1  # to know the matrix
    assert torch.equal(again.x, first.x)
    assert again.iterations == first.iterations
    assert torch.equal(again.residual_norm, first.residual_norm)


def test_more_iterations_continue(tmp_path):
    A, b, path = Watched(positive(60, 1e3)), random(60), tmp_path / "cg.pt"
    assert cg(A, b, maxiter=11, checkpoint=path).status == "maxiter"
    more = cg(A, b, checkpoint=path)
    assert torch.equal(more.x, cg(A, b).x)


def test_negative_curvature_is_remembered(tmp_path):
    A = Watched(torch.diag(torch.linspace(-0.1, 1, 40, dtype=torch.float64)))
    first = cg(A, random(40), checkpoint=tmp_path / "cg.pt")
    again = cg(A, random(40), checkpoint=tmp_path / "cg.pt")
    assert again.status == first.status == "negative curvature"
    assert torch.equal(again.direction, first.direction)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"b": random(60, seed=1)}, "b"),
        ({"rtol": 1e-5}, "rtol"),
        ({"atol": 1.0}, "atol"),
        ({"x0": random(60)}, "x0"),
        ({"M": jacobi_preconditioner(positive(60, 10), torch.ones(60).double())}, "M"),
        ({"A": DenseLinearOperator(positive(60, 1e4), psd=True)}, "the matrix"),
    ],
)
def test_another_problem_is_refused(tmp_path, change, what):
    problem = {"A": Watched(positive(60, 1e3)), "b": random(60)}
    path = tmp_path / "cg.pt"
    cg(**problem, maxiter=6, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"differs in {what}\. "):
        cg(**problem | change, checkpoint=path)
    assert path.read_bytes() == before
