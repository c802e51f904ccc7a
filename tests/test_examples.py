"""Each example runs in a process of its own, warns of nothing, shows what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PARALLEL = ("many_processes",)  # started by torchrun
PROGRAMS = sorted(p.stem for p in EXAMPLES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.skipif("CURVOP_EXAMPLES" not in os.environ, reason="takes long: make examples")
@pytest.mark.parametrize("name", PROGRAMS)
def test_example(name: str, tmp_path: Path) -> None:
    program = EXAMPLES / f"{name}.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = torchrun if name in PARALLEL else ["-W", "error"]
    begin = time.time()
    done = subprocess.run(
        [sys.executable, *options, str(program)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert len(done.stdout.splitlines()) >= 2  # a table, or where the figure is
    figure = re.search(r"^Figure: (.+)$", done.stdout, re.MULTILINE)
    assert (figure is not None) == (f"{name}.png" in program.read_text(encoding="utf-8"))
    if figure is not None:
        written = Path(figure[1])
        assert written.name == f"{name}.png"
        assert written.stat().st_mtime >= begin - 1
        assert written.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.iterdir())  # nothing is left where it was started


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_example_says_what_it_shows(program: Path) -> None:
    source = program.read_text(encoding="utf-8")
    assert source.startswith('"""')
    head = source.split('"""')[1]
    assert len(head.split("\n\n")) >= 2
