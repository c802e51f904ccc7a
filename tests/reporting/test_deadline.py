"""The account of time, memory and disk."""

from __future__ import annotations

import contextlib
import math
import time

import pytest
import torch

from curvop import DiagonalLinearOperator, eigsh, spectral_density, trace
from curvop.reporting import resources, sections
from curvop.reporting.computation import find
from curvop.reporting.deadline import Clock, Metered, TimeUp, in_seconds
from curvop.reporting.findings import Settings
from curvop.reporting.resources import forget, is_worth_saving, settled
from curvop.reporting.target import returned
from tests.reporting import targets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400),
        ("2 min 5 s", 125), (".5", 0.5), (3, 3), (2.5, 2.5), ("none", math.inf),
        (None, math.inf),
    ],
)  # fmt: skip
def test_durations(text, expected):
    assert in_seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "10x", "m", "1d", "ten", True, "1e3", "inf"]
)
def test_no_durations(text):
    with pytest.raises(ValueError, match="Expected a duration such as 90s"):
        in_seconds(text)


def metered(N=50, pause=0.0):
    clock = Clock()
    A = Metered(DiagonalLinearOperator(torch.linspace(-1, 3, N).double()), clock)
    if pause:
        plain = clock.multiply

        def slow(product, M):
            def slowly(M):
                time.sleep(pause * M[0].shape[-1])
                return product(M)

            return plain(slowly, M)

        clock.multiply = slow
    return A, clock


def test_columns_are_products():
    A, clock = metered()
    A @ torch.ones(50).double()
    A @ torch.ones(50, 7).double()
    assert clock.products == 8
    assert (A.T @ torch.eye(50).double()).shape == (50, 50)
    assert clock.products == 58


def test_a_product_that_would_not_end_in_time_is_not_begun():
    A, clock = metered(pause=0.05)
    v = torch.ones(50).double()
    clock.start(time.monotonic() + 0.22)
    begin = time.monotonic()
    done = 0
    with contextlib.suppress(TimeUp):
        while done < 100:
            A @ v
            done += 1
    assert 1 <= done <= 4
    assert clock.is_expired
    assert clock.is_stopped
    assert not clock.is_interrupted
    assert time.monotonic() - begin <= 0.22 + 0.02
    with pytest.raises(TimeUp):
        A @ v
    clock.start(math.inf)
    assert not clock.is_stopped
    A @ v


@pytest.mark.parametrize(
    "solve",
    [
        lambda A, **o: eigsh(A, 5, tol=1e-12, **o).values,
        lambda A, **o: (
            spectral_density(
                A,
                num_probes=3,
                num_matvecs=20,
                generator=torch.Generator().manual_seed(0),
                **o,
            ).values
        ),
        lambda A, **o: torch.tensor(
            trace(A, num_matvecs=40, generator=torch.Generator().manual_seed(0), **o).value
        ),
    ],
    ids=["eigsh", "density", "trace"],
)
def test_solvers_end_with_the_time_and_go_on(solve, tmp_path):
    """Cut into pieces, a run comes to the same result."""
    file = tmp_path / "run.pt"
    A, clock = metered()
    whole = solve(A, checkpoint=tmp_path / "whole.pt")
    pieces = 0
    while True:
        A, clock = metered(pause=0.002)
        clock.start(time.monotonic() + 0.03)
        try:
            found = solve(A, checkpoint=file)
        except KeyboardInterrupt:  # too early for any result
            assert clock.is_expired
        pieces += 1
        if not clock.is_expired:
            break
    assert pieces > 1
    assert torch.equal(found, whole)


# --------------------------------------------------------------- memory and disk


def test_states_are_written_where_that_is_faster_than_computing():
    A = DiagonalLinearOperator(torch.ones(10**6))
    assert is_worth_saving(A, 5, 1e-6)  # 20 MB are nothing
    assert not is_worth_saving(A, 100, 1e-3)
    assert is_worth_saving(A, 100, 1.0)


def test_little_memory_makes_small_bases(tmp_path, monkeypatch):
    """And the results stay right."""
    monkeypatch.setattr(sections, "PROBES", 2)
    about = returned(targets.plain(), "plain")
    whole = find(about, Settings(k=3), tmp_path / "a", time.monotonic(), print).sections
    monkeypatch.setattr(resources, "free_memory", lambda device: 2 * 8 * 123 * 17)
    found = find(about, Settings(k=3), tmp_path / "b", time.monotonic(), print).sections
    assert found["density"]["nodes"].shape == (2, 15)
    for name in ("top", "bottom"):
        a, b = (s[name]["values"] for s in (found, whole))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    (a, error), (b, other) = found["traces"]["trace"], whole["traces"]["trace"]
    assert abs(a - b) <= 4 * (error + other)


def test_a_choice_is_that_of_the_state_that_is_there(tmp_path):
    file = tmp_path / "top.pt"
    chosen, ncv = settled(file, 20)
    assert (chosen, ncv) == (tmp_path / "top-20.pt", 20)
    chosen.touch()
    assert settled(file, 13) == (chosen, 20)
    forget(file)
    assert settled(file, 13) == (tmp_path / "top-13.pt", 13)
