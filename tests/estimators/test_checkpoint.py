"""Runs that are killed, interrupted or poisoned, and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from curvop import Estimate
from curvop.estimators import trace
from curvop.estimators.trace import METHODS
from tests.estimators.killing import CHUNK, KILLS, TOLERANCES, A, run
from tests.estimators.matrices import N, operator, seeded, watched


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What became of runs that were killed, from a process that forks them."""
    folder = tmp_path_factory.mktemp("killed")
    out = subprocess.run(
        [sys.executable, "-m", "tests.estimators.killing", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.mark.parametrize("tol", TOLERANCES)
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_any_moment(killed, method, tol):
    """Bit for bit the same, and no more than a chunk of products lost with each kill."""
    got = killed[f"{method} {tol}"]
    expected = run(None, method=method, tol=tol)
    assert got["kills"] >= KILLS
    assert Estimate(**got["estimate"]) == expected
    extra = got["products"] - expected.num_matvecs
    # each start multiplies once to know the matrix
    assert 0 < extra <= got["starts"] + CHUNK * got["kills_of_the_last"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_finished_is_read(method, tmp_path):
    products = []
    first = run(tmp_path / "run.pt", method=method)
    assert run(tmp_path / "run.pt", products.append, method=method) == first
    assert products == [1]  # which tells the matrix


def after(count: int, what):
    """Count columns, and do something when there have been so many."""
    seen = 0

    def on_product(columns: int):
        nonlocal seen
        seen += columns
        return what() if seen > count else None

    return on_product


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", range(2, 100, 7))
def test_interrupted(method, count, tmp_path):
    generator = seeded(5)
    e = run(
        tmp_path / "run.pt", after(count, interrupt), method=method, generator=generator
    )
    assert e.num_matvecs < 100
    if e.num_matvecs >= 3 * CHUNK:
        truth = float(A.trace())
        assert abs(e.value - truth) <= 3 * e.standard_error
    products = []
    assert run(tmp_path / "run.pt", products.append, method=method) == run(
        None, method=method
    )
    assert sum(products) == 1 + 100 - e.num_matvecs  # nothing is repeated


def test_interrupted_on_the_way_to_the_exact_value(tmp_path):
    """What was visited so far is an estimate, too."""
    options = {"method": "hutchinson", "num_matvecs": N}
    e = run(tmp_path / "run.pt", after(100, interrupt), **options)
    assert e.num_matvecs == 96
    assert abs(e.value - float(A.trace())) <= 3 * e.standard_error
    assert 0 < e.standard_error < 30
    assert run(tmp_path / "run.pt", **options) == run(None, **options)


def test_interrupted_without_a_checkpoint():
    with pytest.raises(KeyboardInterrupt):
        run(None, after(20, interrupt))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_poisoned(method, bad, tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=r"product 3[3-7]\b"):
        run(path, after(1 + 32, lambda: bad), method=method)
    assert run(path, method=method) == run(None, method=method)


def test_the_product_is_named():
    with pytest.raises(ValueError, match=r"got nan or inf in product 7\."):
        trace(watched(A, after(6, lambda: float("nan"))), method="hutchinson", chunk_size=1)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"method": "xtrace"}, "method"),
        ({"num_matvecs": 99}, "num_matvecs"),
        ({"tol": 1.0}, "tol"),
        ({"generator": seeded(6)}, "generator"),
    ],
)
def test_of_another_problem(other, what, tmp_path):
    run(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=rf"differs in {what}\."):
        run(tmp_path / "run.pt", **other)


def test_of_another_matrix(tmp_path):
    run(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="differs in the matrix"):
        trace(
            operator("flat"),
            num_matvecs=100,
            generator=seeded(5),
            checkpoint=tmp_path / "run.pt",
        )


@pytest.mark.parametrize("method", METHODS)
def test_without_a_seed_and_with_other_chunks(method, tmp_path):
    """The state of the generator is in the file; chunks are a matter of memory."""
    path = tmp_path / "run.pt"
    e = run(path, after(50, interrupt), method=method, generator=None)
    again = trace(
        operator("indefinite"),
        method=method,
        num_matvecs=100,
        checkpoint=path,
        chunk_size=9,
    )
    assert again.num_matvecs == 100 > e.num_matvecs
    assert abs(again.value - float(A.trace())) <= 3 * again.standard_error


def test_the_generator_is_left_where_the_run_is(tmp_path):
    generators = [seeded(5), seeded(5)]
    run(None, generator=generators[0])
    run(tmp_path / "run.pt", after(50, interrupt))
    run(tmp_path / "run.pt", generator=generators[1])
    assert torch.equal(*(g.get_state() for g in generators))
