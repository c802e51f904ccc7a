"""Single flipped bits in files: refused, or without any effect."""

from __future__ import annotations

import random as choice
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from curvop import assume_psd, cg, eigsh, spectral_density, svds, trace
from curvop.checkpoint import Checkpoint
from curvop.checksum import checksum, not_finite
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from curvop.operators import LinearOperator, as_operator
from tests.comparing import random
from tests.kronecker.test_storage import problem
from tests.solvers.matrices import positive

FLIPS = 200  # at different places of each file

A = assume_psd(positive(12, 100))
b = random(12, seed=2)


def seeded() -> Generator:
    return Generator().manual_seed(0)


def flipped(path: Path) -> Iterator[int]:
    """The file with one bit flipped, at many places, header and numbers alike."""
    intact = path.read_bytes()
    draw = choice.Random(0)
    for bit in draw.sample(range(8 * len(intact)), FLIPS):
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        yield bit
    path.write_bytes(intact)


def numbers(result: Any) -> list[Any]:
    """All that a result says."""
    return [v.tolist() if isinstance(v, Tensor) else v for v in vars(result).values()]


RUNS: dict[str, Callable[[Path, int], Any]] = {
    "cg": lambda path, most: cg(A, b, maxiter=most, checkpoint=path),
    "eigsh": lambda path, most: eigsh(A, 2, ncv=6, generator=seeded(), checkpoint=path),
    "lobpcg": lambda path, most: eigsh(
        A, 2, which="LA", method="lobpcg", generator=seeded(), checkpoint=path
    ),
    "svds": lambda path, most: svds(A, 2, ncv=6, generator=seeded(), checkpoint=path),
    "density": lambda path, most: spectral_density(
        A, num_probes=3, num_matvecs=6, num_points=9, generator=seeded(), checkpoint=path
    ),
    "trace": lambda path, most: trace(
        A, num_matvecs=10, generator=seeded(), checkpoint=path
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_with_a_flipped_bit(name: str, tmp_path: Path) -> None:
    """Each is refused, by its name, or does not change the result."""
    run, path = RUNS[name], tmp_path / "run.pt"
    run(path, 5)
    intact = path.read_bytes()
    right = numbers(run(path, 9))
    path.write_bytes(intact)
    told: list[str] = []
    for bit in flipped(path):
        try:
            result = run(path, 9)
        except ValueError as error:
            told += [str(error)]
        else:
            assert numbers(result) == right, bit
    assert all(str(path) in words and "remove" in words for words in told)
    assert len(told) > FLIPS / 4  # names and padding of the container do not matter


@pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
@pytest.mark.parametrize("name", ["factors.pt", "factors.safetensors"])
def test_factors_with_a_flipped_bit(kind: Any, name: str, tmp_path: Path) -> None:
    """Each file is refused, by its name, or has the same factors."""
    model, loss, params, data = problem()
    path = tmp_path / name
    K = kind(model, loss, params, data)
    K.save(path)
    dense, told = K.to_dense(), list[str]()
    for bit in flipped(path):
        try:
            loaded = kind.load(path, model, params)
        except ValueError as error:
            told += [str(error)]
        else:
            assert torch.equal(loaded.to_dense(), dense), bit
    assert all(str(path) in words for words in told)
    assert len(told) > FLIPS / 4


def test_a_damaged_checkpoint_tells_so(tmp_path: Path) -> None:
    """Where the numbers of a tensor are other ones."""
    path, v = tmp_path / "run.pt", torch.full((64,), 1.2345)
    Checkpoint(path, A, {}).save({"v": v})
    content = path.read_bytes()
    at = content.index(v.numpy().tobytes())
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(ValueError, match=r"run\.pt.* differs from its checksum.* remove"):
        Checkpoint(path, A, {}).load()


def without_checksum(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The file as versions without a checksum wrote it."""
    stored = torch.load(path, weights_only=True)
    del stored["checksum"]
    change(stored)
    torch.save(stored, path)


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    """By the checks that there are without one."""
    path = tmp_path / "run.pt"
    right = cg(A, b, maxiter=9)
    cg(A, b, maxiter=5, checkpoint=path)
    without_checksum(path, lambda stored: None)
    assert torch.equal(cg(A, b, maxiter=9, checkpoint=path).x, right.x)

    model, loss, params, data = problem()
    K = KFACLinearOperator(model, loss, params, data)
    K.save(tmp_path / "factors.pt")
    without_checksum(tmp_path / "factors.pt", lambda stored: None)
    loaded = KFACLinearOperator.load(tmp_path / "factors.pt", model, params)
    assert torch.equal(loaded.to_dense(), K.to_dense())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    """By its name: in files without a checksum, and with a right one."""
    path = tmp_path / "trace.pt"

    def spoil(stored: dict[str, Any]) -> None:
        stored["state"]["Q"][0, 0] = value

    trace(A, num_matvecs=10, generator=seeded(), checkpoint=path)
    without_checksum(path, spoil)
    with pytest.raises(ValueError, match=r"trace\.pt, got inf or nan in Q\."):
        trace(A, num_matvecs=10, generator=seeded(), checkpoint=path)
    file = Checkpoint(tmp_path / "run.pt", as_operator(A), {})
    file.save({"sketch": {"mean": torch.tensor(value)}, "parts": [torch.tensor(1.0)]})
    with pytest.raises(ValueError, match=r"inf or nan in sketch\.mean\. .*remove"):
        file.load(finite=True)
    kept = file.load()  # where results are kept
    assert kept is not None
    assert not kept["sketch"]["mean"].isfinite()

    model, loss, params, data = problem()
    K = KFACLinearOperator(model, loss, params, data)
    K.save(tmp_path / "factors.pt")

    def spoil_factor(stored: dict[str, Any]) -> None:
        stored["tensors"]["0.left"].view(-1)[0] = value

    without_checksum(tmp_path / "factors.pt", spoil_factor)
    with pytest.raises(ValueError, match=r"factors\.pt, got inf or nan in 0\.left"):
        KFACLinearOperator.load(tmp_path / "factors.pt", model, params)


def test_a_checksum_tells_values_types_and_places_apart() -> None:
    """All that a file may hold."""
    states: list[Any] = [
        {"a": torch.zeros(2)},
        {"b": torch.zeros(2)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": torch.zeros(1, 2)},
        {"a": torch.tensor([0.0, -0.0])},
        {"a": [torch.zeros(2)]},
        {"a": (torch.zeros(2),)},
        {"a": {"a": torch.zeros(2)}},
        {"a": 1},
        {"a": 1.0},
        {"a": "1"},
        {"a": None},
        {"a": torch.zeros(0)},
        {"a": torch.zeros(2, dtype=torch.bfloat16)},
        {"a": torch.tensor(True)},
    ]
    assert len({checksum(state) for state in states}) == len(states)
    assert all(checksum(state) == checksum(state) for state in states)
    long = torch.arange(10_000.0)  # of which repr shows but a few
    other = long.clone()
    other[5000] += 1
    assert checksum([long]) != checksum([other])


def test_what_is_not_known_may_be_nan_in_a_list() -> None:
    """Residuals of columns that have moved, say."""
    nan = float("nan")
    state = {"residuals": [nan, 1.0], "rules": [(torch.tensor([nan]),)], "scale": nan}
    assert list(not_finite(state)) == ["rules[0][0]", "scale"]


def test_operators_are_what_they_were(tmp_path: Path) -> None:
    """A matrix whose fixed product is damaged is not mistaken for another one."""
    path = tmp_path / "run.pt"
    operator: LinearOperator = as_operator(A)
    Checkpoint(path, operator, {}).save({"n": 1})
    content = bytearray(path.read_bytes())
    product = torch.load(path, weights_only=True)["product"].numpy().tobytes()
    content[content.index(product) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        Checkpoint(path, operator, {}).load()
