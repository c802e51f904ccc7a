"""Reports that are interrupted, killed, or out of time go on to the same result."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest

from curvop.reporting import figures, main, sections
from curvop.reporting.deadline import Clock
from tests.reporting import targets

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
COMMAND = ["report", "tests.reporting.targets:trained", "-k", "3", "--quiet"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quickly(monkeypatch)


def quickly(monkeypatch):
    """Few probes, and pictures are of no interest here."""
    monkeypatch.setattr(sections, "PROBES", 3)
    monkeypatch.setattr(sections, "STEPS", 16)
    monkeypatch.setattr(figures, "picture", lambda *args, **options: "<svg></svg>")


def slowly(log, pause):
    """Make products take time, as those of real models do, and count them in a file."""
    plain = Clock.multiply

    def multiply(self, product, M):
        def slow(M):
            K = M[0].shape[-1]
            os.write(log, b"." * K)
            time.sleep(pause * K)
            return product(M)

        return plain(self, slow, M)

    Clock.multiply = multiply


def started(arguments, log, pause=1e-3):
    """The command in a forked process; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the parent
        pid = os.fork()
    if pid:
        return pid
    code = 99
    with contextlib.suppress(BaseException):
        slowly(log, pause)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        code = main(arguments)
    os._exit(code)


def ended(pid):
    """Exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def products(log):
    return os.fstat(log).st_size


def wait_for(log, count):
    until = time.monotonic() + 60
    while products(log) < count:
        assert time.monotonic() < until
        time.sleep(1e-3)


@pytest.fixture
def log(tmp_path):
    file = os.open(tmp_path / "products", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield file
    os.close(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run has."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        assert main([*COMMAND, "--out", str(folder)]) == 0
    return read(folder)


def read(folder: Path):
    return json.loads((folder / "report.json").read_text())


def assert_same(record, whole):
    """All but times and products, to rounding: chunks of columns may differ."""

    def same(a, b):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a.keys() - {"seconds", "products", "resumable"}:
                same(a[key], b[key])
        elif isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                same(x, y)
        else:
            assert a == (pytest.approx(b, rel=1e-7, abs=1e-9) if is_number(a) else b)

    same(record["sections"], whole["sections"])


def is_number(x):
    return isinstance(x, float | int)


def test_interrupted_and_killed(tmp_path, log, whole):
    """Ctrl-C, then SIGKILL at random moments, then on to the end."""
    out = tmp_path / "out"
    arguments = [*COMMAND, "--out", str(out), "--budget", "none"]
    draw = random.Random(0)

    pid = started(arguments, log)
    wait_for(log, 40)
    os.kill(pid, signal.SIGINT)
    assert ended(pid) == 130
    record = read(out)
    assert record["status"] == "interrupted"
    done = [n for n, s in record["sections"].items() if s.get("status") == "done"]
    assert "gradient" in done
    assert len(done) < 7
    assert "interrupted" in (out / "report.html").read_text()

    for _ in range(3):
        pid = started(arguments, log)
        wait_for(log, products(log) + draw.randint(10, 40))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL

    assert ended(started(arguments, log)) == 0
    record = read(out)
    assert record["status"] == "complete"
    assert_same(record, whole)
    assert not [p for p in (out / "state").iterdir() if p.name != "sections.pt"]
    # little was computed twice
    spent = sum(s["products"] for s in whole["sections"].values() if "products" in s)
    assert products(log) <= spent + 5 * 15 + 20

    before = products(log)
    assert ended(started(arguments, log)) == 0  # nothing is left to do
    assert products(log) <= before + 3
    assert_same(read(out), whole)


def test_budget_is_kept_and_the_next_run_goes_on(tmp_path, log, whole):
    out = tmp_path / "out"
    arguments = [*COMMAND, "--out", str(out), "--budget"]
    begin = time.monotonic()
    assert ended(started([*arguments, "3s"], log, pause=0.015)) == 3
    took = time.monotonic() - begin
    record = read(out)
    assert record["status"] == "incomplete"
    assert record["runs"][0]["seconds"] <= 3
    assert took <= 3 + 1  # to write the page
    page = (out / "report.html").read_text()
    assert "incomplete: the time was up" in page
    assert "not finished in the time" in page
    assert record["sections"]["gradient"]["status"] == "done"

    assert ended(started([*arguments, "none"], log)) == 0
    assert_same(read(out), whole)
    assert len(read(out)["runs"]) == 2


def test_too_little_time_for_anything(tmp_path, log):
    out = tmp_path / "out"
    assert ended(started([*COMMAND, "--out", str(out), "--budget", "0.001s"], log)) == 3
    assert read(out)["status"] == "incomplete"
    assert "not finished in the time" in (out / "report.html").read_text()


def test_another_model_is_computed_anew(tmp_path, capsys, monkeypatch):
    target = "tests.reporting.targets:tiny"
    arguments = ["report", target, "--out", str(tmp_path)]
    assert main(arguments) == 0
    first = read(tmp_path)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "Going on with an earlier run" in capsys.readouterr().err
    plain = targets.tiny

    def changed():
        model, loss, params, data = plain()
        return model, loss, params, [(2 * X, y) for X, y in data]

    monkeypatch.setattr(targets, "tiny", changed)
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "differs in data" in said
    assert "Computing anew" in said
    second = read(tmp_path)
    assert second["problem"]["hash_of_data"] != first["problem"]["hash_of_data"]
    assert second["problem"]["hash_of_parameters"] == first["problem"]["hash_of_parameters"]
    assert second["sections"]["top"]["values"] != first["sections"]["top"]["values"]
    assert len(second["runs"]) == 1
    assert main([*arguments, "--seed", "3"]) == 0
    assert "differs in seed" in capsys.readouterr().err


def test_another_loss_is_computed_anew(tmp_path, capsys, monkeypatch):
    """Which no hash tells, but a product does."""
    arguments = ["report", "tests.reporting.targets:plain", "--out", str(tmp_path), "-k2"]
    assert main(arguments) == 0
    plain = targets.plain

    def changed():
        model, loss, params, data = plain()
        loss.label_smoothing = 0.1
        return model, loss, params, data

    monkeypatch.setattr(targets, "plain", changed)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "differs in the matrix" in capsys.readouterr().err


def test_interrupted_before_there_is_anything(tmp_path, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "tiny", interrupted)
    target = "tests.reporting.targets:tiny"
    assert main(["report", target, "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "curvop: interrupted\n"
    assert not (tmp_path / "out").exists()
