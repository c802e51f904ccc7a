"""Exact diagonals: time and memory beside BackPACK's extensions and curvlinops.

python benchmarks/diagonals.py             prints the tables
python benchmarks/diagonals.py --write     and writes results/diagonals.json and .md

BackPACK works on copies of model and loss, which it extends before the clock starts; ours
builds the operator, with all its checks, from the user's own. curvlinops has no exact
diagonal: from its GGN it takes as many products as parameters, measured for some of them.
"""

from __future__ import annotations

import os

# Threads that wait must not take the core from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import copy
import functools
import math
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from backpack import backpack, extend
from backpack.extensions import DiagGGNExact, DiagGGNMC, DiagHessian, SumGradSquared
from curvlinops import GGNLinearOperator as TheirGGN
from timing import CPU, Clock, Effort, Failure, interleaved
from torch import Tensor, nn
from writing import machine, write

from curvop import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)

COLUMNS = 32  # of curvlinops, scaled to all
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Workload:
    """A network of layers that BackPACK knows, or of others, and its data."""

    name: str
    build: Callable[[], tuple[nn.Module, Tensor, int]]
    batches: int = 4

    def make(self) -> tuple[nn.Module, Batches]:
        """The model and its data, always the same."""
        torch.manual_seed(0)
        model, X, C = self.build()
        out = model(X[:1])
        y = torch.randint(C, (len(X), *out.shape[2:]))
        size = len(X) // self.batches
        return model.eval(), list(zip(X.split(size), y.split(size), strict=True))


def perceptron(activation: type[nn.Module]) -> tuple[nn.Module, Tensor, int]:
    layers = [nn.Linear(784, 256), activation(), nn.Linear(256, 128), activation()]
    return nn.Sequential(*layers, nn.Linear(128, 10)), torch.randn(1024, 784), 10


def convolutional(activation: type[nn.Module]) -> tuple[nn.Module, Tensor, int]:
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 64, 64),
        activation(),
    ]
    return nn.Sequential(*layers, nn.Linear(64, 10)), torch.randn(128, 3, 32, 32), 10


class Attention(nn.Module):
    """One block of a transformer, from tokens to tokens."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, batch_first=True, dropout=0.0
        )
        self.head = nn.Linear(width, tokens)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.embed(ids))).transpose(1, 2)


def transformer() -> tuple[nn.Module, Tensor, int]:
    return Attention(32, 4, 20), torch.randint(20, (32, 8)), 20


def tiny() -> tuple[nn.Module, Tensor, int]:
    return nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3), 2


WORKLOADS = {
    w.name: w
    for w in (
        Workload("perceptron, ReLU", functools.partial(perceptron, nn.ReLU)),
        Workload("perceptron, sigmoid", functools.partial(perceptron, nn.Sigmoid)),
        Workload("CNN, ReLU", functools.partial(convolutional, nn.ReLU)),
        Workload("transformer", transformer),
    )
}
MATRICES = ("GGN", "MC Fisher", "empirical Fisher", "Hessian")
OURS: dict[str, tuple[Any, dict[str, Any]]] = {
    "GGN": (GGNDiagonalLinearOperator, {}),
    "MC Fisher": (GGNDiagonalLinearOperator, {"mc_samples": 1}),
    "empirical Fisher": (EFDiagonalLinearOperator, {}),
    "Hessian": (HessianDiagonalLinearOperator, {}),
}
EXTENSIONS: dict[str, tuple[Any, str]] = {
    "GGN": (DiagGGNExact, "diag_ggn_exact"),
    "MC Fisher": (DiagGGNMC, "diag_ggn_mc"),
    "empirical Fisher": (SumGradSquared, "sum_grad_squared"),
    "Hessian": (DiagHessian, "diag_h"),
}
Run = Callable[[], Tensor]


def gradient(model: nn.Module, data: Batches, matrix: str) -> Run:
    params = list(model.parameters())

    def run() -> Tensor:
        for X, y in data:
            grads = torch.autograd.grad(nn.functional.cross_entropy(model(X), y), params)
        return grads[0]

    return run


def ours(
    model: nn.Module, data: Batches, matrix: str, *, check_deterministic: bool = True
) -> Run:
    cls, options = OURS[matrix]
    options = {**options, "check_deterministic": check_deterministic}
    params = list(model.parameters())
    return lambda: cls(model, nn.CrossEntropyLoss(), params, data, **options).diagonal()


def theirs(model: nn.Module, data: Batches, matrix: str) -> Run:
    """BackPACK; what it returns is of the mean of a batch."""
    extension, attribute = EXTENSIONS[matrix]
    model = extend(copy.deepcopy(model))
    loss = extend(nn.CrossEntropyLoss())
    N = sum(len(y) for _, y in data)

    def run() -> Tensor:
        parts = []
        for X, y in data:
            model.zero_grad()
            with backpack(extension()):
                loss(model(X), y).backward()
            found = [getattr(p, attribute).flatten() for p in model.parameters()]
            n = len(y)
            scale = n * n / N if matrix == "empirical Fisher" else n / N
            parts.append(scale * torch.cat(found))
        return torch.stack(parts).sum(0)

    return run


def columns(model: nn.Module, data: Batches, matrix: str) -> Run:
    """Products of curvlinops with a few unit vectors."""
    params = list(model.parameters())
    G = TheirGGN(model, nn.CrossEntropyLoss(), params, data, check_deterministic=False)
    E = torch.eye(G.shape[1], COLUMNS)
    return lambda: (G @ E).diagonal()


CONTENDERS = {
    "gradient": gradient,
    "curvop": ours,
    "curvop, one pass": functools.partial(ours, check_deterministic=False),
    "BackPACK": theirs,
    "curvlinops": columns,
}


def contenders(workload: str, matrix: str) -> list[str]:
    """Who can do it."""
    names = ["gradient", "curvop", "curvop, one pass"]
    names += ["BackPACK"] if workload != "transformer" else []
    names += ["curvlinops"] if matrix == "GGN" else []
    return names


def error(workload: Workload, matrix: str) -> float | None:
    """Ours against BackPACK's, relative to the largest entry."""
    if workload.name == "transformer" or matrix == "MC Fisher":
        return None
    model, data = workload.make()
    a, b = (make(model, data, matrix)() for make in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())


def _peak(workload: str, matrix: str, contender: str) -> int:
    """Bytes at the peak above those of a warm process that holds model and data."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    CONTENDERS[contender](*Workload("tiny", tiny).make(), matrix)()  # first times
    model, data = WORKLOADS[workload].make()
    run = CONTENDERS[contender](model, data, matrix)
    gradient(model, data, matrix)()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    before = _memory("VmRSS")
    run()
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith(name))


def peak(workload: str, matrix: str, contender: str) -> int | str:
    """In a process of its own, whose freed memory goes back at once (glibc)."""
    os.environ.update(
        MALLOC_MMAP_THRESHOLD_="65536",
        MALLOC_TRIM_THRESHOLD_="65536",
        PYTHONPATH=str(Path(__file__).parent),
    )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak, workload, matrix, contender).result()
        except Exception as failure:
            return f"{type(failure).__name__}: {failure}"[:120]


def measure(clock: Clock, effort: Effort, only: list[str]) -> list[dict[str, Any]]:
    """One row for each network and matrix."""
    rows = []
    for workload in WORKLOADS.values():
        if only and workload.name not in only:
            continue
        for matrix in MATRICES:
            model, data = workload.make()
            names = contenders(workload.name, matrix)
            runs = {n: CONTENDERS[n](model, data, matrix) for n in names}
            times = interleaved(runs, clock, effort)
            P = sum(p.numel() for p in model.parameters())
            row = {
                "network": workload.name,
                "parameters": P,
                "data": sum(len(X) for X, _ in data),
                "matrix": matrix,
                "clock": clock.name,
                "seconds": {
                    n: t.message if isinstance(t, Failure) else asdict(t)
                    for n, t in times.items()
                },
                "peak_bytes": {
                    n: peak(workload.name, matrix, n)
                    for n in names
                    if n in ("curvop", "BackPACK")
                },
                "error": error(workload, matrix),
            }
            print(line(row), flush=True)
            rows.append(row)
    return rows


HEAD = (
    "| network | parameters | matrix | gradient | curvop | one pass | BackPACK | "
    "curvlinops | one pass / BackPACK | peak MB: curvop | BackPACK | difference |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    times = {n: s["median"] for n, s in row["seconds"].items() if isinstance(s, dict)}
    if "curvlinops" in times:
        times["curvlinops"] *= row["parameters"] / COLUMNS
    cells: list[str] = [row["network"], f"{row['parameters']:,}", row["matrix"]]
    cells += [f"{1e3 * times[n]:,.1f}" if n in times else "–" for n in CONTENDERS]
    both = "BackPACK" in times
    ratio = times["curvop, one pass"] / times["BackPACK"] if both else math.nan
    cells.append(f"{ratio:.2f}" if both else "–")
    for n in ("curvop", "BackPACK"):
        size = row["peak_bytes"].get(n)
        cells.append(f"{size / 2**20:,.0f}" if isinstance(size, int) else "–")
    cells.append("–" if row["error"] is None else f"{row['error']:.0e}")
    return "| " + " | ".join(cells) + " |"


def markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return (
        "Milliseconds for an exact diagonal over the data (four batches, single precision, "
        f"cross-entropy), {CPU.name}, medians of interleaved runs, and the memory at the "
        "peak beyond model and data. Ours includes building the operator, the comparison "
        "with entries of the matrix, and the determinism check (two more passes) except "
        "where it says one pass; BackPACK's model is copied and extended before. "
        "curvlinops has no exact diagonal: as many products with its GGN as "
        f"parameters, extrapolated from {COLUMNS}. The difference is that between ours and "
        "BackPACK's, relative to the largest entry. BackPACK has no transformer. torch "
        f"{machine['torch']}, BackPACK {machine['backpack']}, curvlinops "
        f"{machine['curvlinops']}, {machine['processor']}. Measured by `python "
        f"benchmarks/diagonals.py --write`.\n\n{HEAD}"
        + "\n".join(map(line, record["rows"]))
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], choices=list(WORKLOADS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # BackPACK's, of torch
    effort = Effort(repetitions=3 if args.quick else 7, seconds=8 if args.quick else 30)
    print(HEAD, end="")
    rows = measure(CPU, effort, args.only)
    record = {
        "machine": machine("backpack-for-pytorch", "curvlinops-for-pytorch"),
        "rows": rows,
    }
    if args.write:
        write("diagonals", record, markdown(record))


if __name__ == "__main__":
    main()
