"""The command line: what it says, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import curvop
from curvop.reporting import figures, main, sections


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    monkeypatch.setattr(sections, "PROBES", 2)
    monkeypatch.setattr(sections, "STEPS", 8)
    monkeypatch.setattr(figures, "picture", lambda *args, **options: "<svg></svg>")


def write(folder, body, name="mine.py"):
    path = folder / name
    path.write_text(body)
    return path


GOOD = """
import torch
from torch import nn
import neighbour

def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, neighbour.CLASSES))
    X, y = torch.randn(20, 4), torch.randint(0, 2, (20,))
    return model, nn.CrossEntropyLoss(), model.parameters(), [(X, y)]
"""


def test_a_file(tmp_path, capsys):
    path = write(tmp_path, GOOD)
    write(tmp_path, "CLASSES = 2", "neighbour.py")
    out = tmp_path / "made" / "here"
    before = list(sys.path)
    code = main(["report", f"{path}:build", "--out", str(out), "-k", "3", "--seed", "5"])
    said = capsys.readouterr()
    assert code == 0
    assert "largest eigenvalue" in said.out
    assert f"complete: {out / 'report.html'}" in said.out
    assert "a product takes" in said.err
    assert "Spectral density" in said.err
    assert sys.path == before
    record = json.loads((out / "report.json").read_text())
    assert record["settings"]["seed"] == 5
    assert len(record["sections"]["top"]["values"]) == 3
    assert "<title>Curvature of mine.py:build</title>" in (out / "report.html").read_text()


def test_quiet_and_a_module(tmp_path, capfd):
    arguments = [
        "report",
        "tests.reporting.targets:tiny",
        "--out",
        str(tmp_path),
        "--quiet",
    ]
    assert main([*arguments, "--dtype", "float32", "--title", "<b>mine</b>"]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert (
        json.loads((tmp_path / "report.json").read_text())["problem"]["dtype"] == "float32"
    )
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "<b>mine" not in page


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def build():\n    raise KeyError('no such file')", "mine.py, line 2"),
        ("def build():\n    return 1, 2", "returned tuple of 2"),
        (
            "def build():\n    return {'model': 1, 'loss': 2, 'data': 3}",
            "without ['params']",
        ),
        (
            "def build():\n    return dict(model=1, loss=2, params=[], data=3, x=1)",
            "with ['x']",
        ),
        ("def build():\n    return None", "returned NoneType"),
        ("def build():\n    return 1, 2, None, 4", "Give the parameters"),
        ("def build():\n    return 1, 2, [], 4", "at least one parameter"),
        ("def build():\n    return 1, 2, 3, 4", "params as a list or dict"),
        ("def build(path):\n    pass", "missing 1 required positional argument"),
        ("def build():\n    exit(3)", "raised SystemExit"),
        ("build = 3", "as a function, got 3"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("def build(:", "SyntaxError"),
        (
            "import torch\ndef build():\n    w = torch.ones(2)\n"
            "    return (lambda X: X), torch.nn.MSELoss(), [w], iter([])",
            "one-shot",
        ),
    ],
)
def test_errors_of_the_target_are_told_without_a_traceback(tmp_path, capsys, body, message):
    path = write(tmp_path, body)
    assert main(["report", f"{path}:build", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not (tmp_path / "out" / "report.html").exists()


def test_dropout(tmp_path, capsys):
    target = "tests.reporting.targets:dropout"
    assert main(["report", target, "--out", str(tmp_path / "out"), "--traceback"]) == 1
    said = capsys.readouterr().err
    assert "dropout" in said
    assert "Call model.eval()" in said
    assert "Traceback" in said  # asked for


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "the following arguments are required: target"),
        (["report", "nowhere.py:build"], "no file nowhere.py"),
        (["report", "no.such.module:build"], "no module no.such.module"),
        (["report", "tests.reporting.targets:nothing"], "no function 'nothing'"),
        (["report", "target.py"], "Expected a target as file.py:function"),
        (["report", "t.py:build", "--budget", "soon"], "Expected a duration"),
        (["report", "t.py:build", "--budget", "0"], "Expected a duration"),
        (["report", "t.py:build", "-k", "0"], "expected a positive integer"),
        (["report", "t.py:build", "--seed", "-1"], "expected a non-negative integer"),
        (["report", "t.py:build", "--tol", "2"], "expected a number in [0, 1)"),
        (["report", "t.py:build", "--dtype", "int8"], "invalid choice"),
        (["report", "t.py:build", "--curvature", "x"], "invalid choice"),
        (["report", "t.py:build", "--device", "toaster"], "no device 'toaster'"),
        (["nonsense"], "invalid choice"),
    ],
)
def test_misuse(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_and_version(capsys):
    for arguments in (["--help"], ["report", "--help"], ["preflight", "--help"]):
        assert main(arguments) == 0
        said = capsys.readouterr().out
        assert "exit codes" in said
        assert max(map(len, said.splitlines())) <= 100
    assert main(["--version"]) == 0
    assert curvop.__version__ in capsys.readouterr().out
    assert main([]) == 2
    assert "report" in capsys.readouterr().out


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "curvop", "report", "nowhere.py:build"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "curvop: error: There is no file nowhere.py.\n"


def test_a_section_that_fails_does_not_take_the_others_with_it(
    tmp_path, capsys, monkeypatch
):
    def failing(*args, **kwargs):
        raise ValueError("Expected finite products, got NaN at product 3.")

    monkeypatch.setattr(sections, "trace", failing)
    assert main(["report", "tests.reporting.targets:plain", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "got NaN at product 3" in said.err
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["sections"]["top"]["status"] == "done"
    assert "traces" in record["errors"]
    assert "got NaN at product 3" in (tmp_path / "report.html").read_text()
    monkeypatch.undo()
    assert main(["report", "tests.reporting.targets:plain", "--out", str(tmp_path)]) == 0


def test_preflight(capsys):
    assert main(["preflight", "tests.reporting.targets:plain"]) == 0
    assert "Hessian" in capsys.readouterr().out
    assert main(["preflight", "tests.reporting.targets:tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_ready"]
