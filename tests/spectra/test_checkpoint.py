"""Runs that are killed at any moment continue to the same result."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import warnings
from types import SimpleNamespace

import pytest
import torch

from curvop import DiagonalLinearOperator
from curvop.checkpoint import EVERY
from curvop.spectra import eigsh, spectral_density
from tests.spectra.matrices import SPECTRA, Watched, linspace, symmetric

MATRIX = symmetric(SPECTRA["top and bottom multiple"][100:])
D = linspace(0.1, 3, len(MATRIX))
KILLS = 8  # of each run: 48 in all

RUNS = {
    # finds multiple values, restarts, looks for missed ones, proves 8 residuals
    "lanczos": lambda A, **o: eigsh(A, 8, tol=1e-10, ncv=20, **o),
    "block": lambda A, **o: eigsh(A, 3, which="LA", tol=1e-8, block_size=2, ncv=14, **o),
    "basis": lambda A, **o: eigsh(A, 4, ncv=14, basis_dtype=torch.float32, **o),
    "generalised": lambda A, **o: eigsh(
        A, 6, which="LA", tol=1e-9, P=DiagonalLinearOperator(D), ncv=20, **o
    ),
    "lobpcg": lambda A, **o: eigsh(A, 4, which="SA", tol=1e-8, method="lobpcg", **o),
    "density": lambda A, **o: spectral_density(
        A,
        num_probes=6,
        num_matvecs=20,
        generator=torch.Generator().manual_seed(1),
        **o,
    ),
}


def assert_same(result, whole):
    """Bit for bit."""
    for field, value in vars(whole).items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(getattr(result, field), value), field


def in_a_child(work):
    """Run ``work`` in a forked process; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the parent
        pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException):
        work()
        os._exit(0)
    os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_moment(name, tmp_path):
    run, path = RUNS[name], tmp_path / "run.pt"
    log = os.open(tmp_path / "products", os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def logging(count):
        os.write(log, b".")
        time.sleep(5e-4)  # of all moments most are in a product, as in real runs

    whole = run(Watched(MATRIX, logging), checkpoint=tmp_path / "whole.pt")
    products = os.fstat(log).st_size
    os.ftruncate(log, 0)

    def work():
        torch.save(vars(run(Watched(MATRIX, logging), checkpoint=path)), tmp_path / "out")

    moments = random.Random(name)
    killed = finished = 0
    while not finished or killed < KILLS:
        if finished:  # faster than we kill: once more from the start
            path.unlink()
            os.ftruncate(log, 0)
            finished = 0
        before = os.fstat(log).st_size
        pid = in_a_child(work)
        stop = before + moments.randint(EVERY, 4 * EVERY) if killed < 2 * KILLS else 1e9
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            if os.fstat(log).st_size >= stop:
                time.sleep(moments.random() * 1e-3)
                os.kill(pid, signal.SIGKILL)
                done = os.waitpid(pid, 0)
                break
            time.sleep(2e-4)
        if os.WIFSIGNALED(done[1]):
            killed += 1
        else:
            assert os.WEXITSTATUS(done[1]) == 0
            finished = 1
    assert os.fstat(log).st_size <= products + 2 * KILLS * (EVERY + 2)
    result = torch.load(tmp_path / "out", weights_only=False)
    assert_same(SimpleNamespace(**result), whole)
    os.close(log)


@pytest.mark.parametrize("name", RUNS)
def test_ctrl_c_leaves_a_checkpoint(name, tmp_path):
    """The interrupt comes in one product after the other, until the run is done."""
    run, path = RUNS[name], tmp_path / "run.pt"
    whole = run(Watched(MATRIX), checkpoint=tmp_path / "whole.pt")
    statuses: list[str] = []
    while len(statuses) < 200 and (not statuses or statuses[-1] == "interrupted"):

        def watch(count):
            if count >= 16:  # the new run has made progress by then
                raise KeyboardInterrupt

        try:
            result = run(Watched(MATRIX, watch), checkpoint=path)
            statuses.append(result.status)
        except KeyboardInterrupt:  # a density without a probe
            statuses.append("interrupted")
    assert len(statuses) > 2
    assert_same(result, whole)


def test_a_signal_at_any_moment_returns_what_has_converged():
    """Real signals, which Python delivers between any two instructions."""
    A = symmetric(SPECTRA["60 negative"])
    statuses = []

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(20):
            operator = Watched(A, lambda count: time.sleep(1e-4))
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.004 + 0.006 * i)
                pairs = eigsh(operator, 8, tol=1e-9, ncv=24)
            except KeyboardInterrupt:  # the run had not begun, or just ended
                continue
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            V = pairs.vectors
            true = (A @ V - V * pairs.values).norm(dim=0)
            assert (true <= 1e-9 * 2 * 1.1).all()
            assert ((pairs.residuals - true).abs() < 1e-12).all()
            statuses.append(pairs.status)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert "interrupted" in statuses
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupted_runs_return_converged_pairs_only():
    def watch(count):
        if count == 60:
            raise KeyboardInterrupt

    A = symmetric(torch.cat([linspace(0, 1, 400), torch.tensor([5.0, 7.0, 9.0])]))
    pairs = eigsh(Watched(A, watch), 10, which="LA", tol=1e-10, ncv=30)
    assert pairs.status == "interrupted"
    k = len(pairs.values)
    assert 3 <= k < 10
    assert (pairs.values - torch.linalg.eigvalsh(A)[-k:]).abs().max() < 1e-9
    nothing = eigsh(Watched(A, lambda count: watch(60)), 3)
    assert nothing.status == "interrupted"
    assert nothing.vectors.shape == (403, 0)
    nothing = eigsh(Watched(A, lambda count: watch(60)), 3, which="LA", method="lobpcg")
    assert nothing.vectors.shape == (403, 0)


def test_of_another_problem_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    A, P = MATRIX, DiagonalLinearOperator(D)
    eigsh(A, 2, P=P, checkpoint=path)
    for other, k, options, what in (
        (A, 3, {"P": P}, "k"),
        (A, 2, {"P": P, "tol": 1e-3}, "tol"),
        (A, 2, {"P": P, "which": "LA"}, "which"),
        (A, 2, {"P": P, "ncv": 30}, "ncv"),
        (A, 2, {"P": P, "v0": torch.ones(len(A)).double()}, "v0"),
        (A * 1.001, 2, {"P": P}, "the matrix"),
        (A, 2, {"P": DiagonalLinearOperator(2 * D)}, "the matrix"),
        (A, 2, {}, "the matrix"),
    ):
        with pytest.raises(ValueError, match=f"differs in .*{what}"):
            eigsh(other, k, checkpoint=path, **options)
    with pytest.raises(ValueError, match="algorithm"):
        spectral_density(A, checkpoint=path)


@pytest.mark.parametrize("name", RUNS)
def test_nan_does_not_reach_the_checkpoint(name, tmp_path):
    run, path = RUNS[name], tmp_path / "run.pt"
    whole = run(Watched(MATRIX), checkpoint=tmp_path / "whole.pt")

    class Failing(Watched):
        def _matmat(self, M):
            (AM,) = super()._matmat(M)
            return [AM * torch.nan if self.seen[0] > 31 else AM]

    with pytest.raises(ValueError, match=r"got NaN at product \d+"):
        run(Failing(MATRIX), checkpoint=path)
    result = run(Watched(MATRIX), checkpoint=path)
    assert_same(result, whole)
