"""The file that a long run is continued from."""

import subprocess
import sys

import pytest
import torch

from curvop import DenseLinearOperator
from curvop.checkpoint import EVERY, Checkpoint

PROBLEM = {"algorithm": "test", "rtol": 1e-6, "b": torch.arange(3.0)}


def matrix(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return DenseLinearOperator(torch.randn(3, 3, generator=draw, dtype=torch.float64))


def test_comes_back_bit_for_bit(tmp_path):
    file = Checkpoint(tmp_path / "run.pt", matrix(), PROBLEM)
    assert file.load() is None
    state = {"k": 3, "V": torch.randn(3, 2), "status": None, "history": [0.1, 0.2]}
    file.save(state)
    back = Checkpoint(tmp_path / "run.pt", matrix(), PROBLEM).load()
    assert torch.equal(back.pop("V"), state.pop("V"))
    assert back == state
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (PROBLEM | {"rtol": 1e-5}, "rtol"),
        (PROBLEM | {"b": torch.tensor([0.0, 1.0, 2.0000002])}, "b"),
        (PROBLEM | {"b": torch.arange(3.0).double()}, "b"),
        (PROBLEM | {"more": 1}, "more"),
    ],
)
def test_of_another_problem_is_refused(tmp_path, other, what):
    Checkpoint(tmp_path / "run.pt", matrix(), PROBLEM).save({})
    with pytest.raises(ValueError, match=rf"differs in {what}\."):
        Checkpoint(tmp_path / "run.pt", matrix(), other).load()


def test_of_another_matrix_is_refused(tmp_path):
    Checkpoint(tmp_path / "run.pt", matrix(), PROBLEM).save({})
    near = DenseLinearOperator(matrix().to_dense() * (1 + 1e-14))
    assert Checkpoint(tmp_path / "run.pt", near, PROBLEM).load() == {}
    for other in (matrix(1), matrix() * (1 + 1e-9), matrix()[:2, :]):
        with pytest.raises(ValueError, match="differs in the matrix"):
            Checkpoint(tmp_path / "run.pt", other, PROBLEM).load()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "run.pt"
    if content is None:
        torch.save({"weights": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        Checkpoint(path, matrix(), PROBLEM).load()


def test_directory_must_exist(tmp_path):
    with pytest.raises(ValueError, match="directory that exists"):
        Checkpoint(tmp_path / "no" / "run.pt", matrix(), PROBLEM)


def test_without_a_path_nothing_happens():
    file = Checkpoint(None, matrix(), PROBLEM)
    file.save({})
    assert file.load() is None
    assert file.num_matvecs == 0
    assert not file.due(0, 100 * EVERY)


def test_an_error_while_writing_leaves_the_last_state(tmp_path):
    file = Checkpoint(tmp_path / "run.pt", matrix(), PROBLEM)
    file.save({"k": 1})
    with pytest.raises(AttributeError, match="pickle"):
        file.save({"k": lambda: 2})
    assert file.load() == {"k": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]


def test_due_every_few_products(tmp_path):
    file = Checkpoint(tmp_path / "run.pt", matrix(), PROBLEM)
    assert [n for n in range(3 * EVERY) if file.due(n, n + 1)] == [
        EVERY - 1,
        2 * EVERY - 1,
        3 * EVERY - 1,
    ]
    assert file.due(0, 3 * EVERY)


KILLED = """
import sys, torch
from curvop import DenseLinearOperator
from curvop.checkpoint import Checkpoint
file = Checkpoint(sys.argv[1], DenseLinearOperator(torch.eye(2)), {})
k = 0
while True:
    file.save({"k": k, "v": torch.full((100_000,), float(k))})
    print(k, flush=True)
    k += 1
"""


def test_a_kill_while_writing_leaves_a_whole_state(tmp_path):
    path = tmp_path / "run.pt"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(3):
            seen = int(process.stdout.readline())
        process.kill()
    state = Checkpoint(path, DenseLinearOperator(torch.eye(2)), {}).load()
    assert state["k"] >= seen
    assert torch.equal(state["v"], torch.full((100_000,), float(state["k"])))
