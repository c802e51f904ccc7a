"""The factor form beside Krylov methods: eigenvalues, linear systems, memory.

python benchmarks/lowrank.py             prints the tables
python benchmarks/lowrank.py --write     and writes results/lowrank.json and .md

Every run starts from the operator: the factor form derives its columns, verifies them and
computes the Gram matrix; the Krylov methods linearise the operator first.
"""

from __future__ import annotations

import os

# Threads that wait must not take the core from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timing import CPU, Effort, interleaved
from torch import Tensor, nn
from writing import machine, write

from curvop import Eigenpairs, GGNLinearOperator, IdentityLinearOperator, cg, eigsh

TOP = 50  # eigenvalues
DAMPING, COLUMNS, RTOL = 1e-2, 8, 1e-8  # of the linear systems


@dataclass(frozen=True)
class Problem:
    """A network, 1,000 outputs over all data, cross-entropy."""

    network: str
    data: int
    precision: str

    def build(self) -> GGNLinearOperator:
        """The Gauss-Newton matrix."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.precision)
        layers, shape = NETWORKS[self.network]()
        model = nn.Sequential(*layers).to(dtype)
        X = torch.randn(self.data, *shape, dtype=dtype)
        y = torch.randint(10, (self.data,))
        params = list(model.parameters())
        loss = nn.CrossEntropyLoss()
        return GGNLinearOperator(model, loss, params, [(X, y)], check_deterministic=False)


def perceptron() -> tuple[list[nn.Module], tuple[int, ...]]:
    """199,946 parameters."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(256, 256), nn.Tanh()]
    return [*layers, nn.Linear(256, 10)], (256,)


def convolutions() -> tuple[list[nn.Module], tuple[int, ...]]:
    """205,952 parameters, most of them in convolutions on 8 x 8 and 4 x 4 positions."""
    return [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 10, bias=False),
    ], (3, 16, 16)


NETWORKS: dict[str, Callable[[], tuple[list[nn.Module], tuple[int, ...]]]] = {
    "perceptron": perceptron,
    "convolutions": convolutions,
}


# ------------------------------------------------------------------- contenders


def by_factor(G: GGNLinearOperator) -> Eigenpairs:
    return G.factor().eigh(TOP)


def by_lanczos(G: GGNLinearOperator) -> Eigenpairs:
    return eigsh(G.linearize(), TOP, which="LA")


def inverse_by_factor(G: GGNLinearOperator, B: Tensor) -> Tensor:
    x: Tensor = G.factor(gram_dtype=torch.float64).inverse(DAMPING) @ B
    return x


def inverse_by_cg(G: GGNLinearOperator, B: Tensor) -> Tensor:
    damped = G.linearize() + DAMPING * IdentityLinearOperator.like(G)
    return cg(damped, B, rtol=RTOL, maxiter=1000).x


# ---------------------------------------------------------------------- measures


def residual(G: GGNLinearOperator, pairs: Eigenpairs) -> float:
    """Largest ``‖G v - λ v‖ / λ_max``, by the products of the operator itself."""
    gap = G @ pairs.vectors - pairs.vectors * pairs.values
    return float(gap.norm(dim=0).max() / pairs.values.max())


def eigenvalues(p: Problem, effort: Effort) -> dict[str, Any]:
    """The top of the spectrum, the whole of it, and the memory that the factor takes."""
    G = p.build()
    found: dict[str, Eigenpairs] = {}

    def run(name: str, solve: Callable[[GGNLinearOperator], Eigenpairs]) -> None:
        found[name] = solve(G)

    A = G.factor()
    nbytes = sum(piece.nbytes for _, piece in A.V._pieces())
    times = interleaved(
        {
            "factor": functools.partial(run, "factor", by_factor),
            "eigsh": functools.partial(run, "eigsh", by_lanczos),
            "all values": lambda: G.factor().eigvalsh(),
            "quarter of the memory": lambda: G.factor(nbytes // 4).eigvalsh(),
        },
        CPU,
        effort,
    )
    ratio = times["eigsh"].median / times["factor"].median
    exact, lanczos = found["factor"], found["eigsh"]
    return {
        **asdict(p),
        "P": A.V.shape[0],
        "R": A.V.shape[1],
        "rank": len(A.eigvalsh()),
        "seconds": {name: asdict(t) for name, t in times.items()},
        "times faster": ratio,
        "residual": {name: residual(G, pairs) for name, pairs in found.items()},
        "products": lanczos.num_matvecs,
        "difference": float((exact.values - lanczos.values).abs().max() / exact.values[-1]),
        "kept bytes": nbytes,
        "bytes of V": A.V.shape[0] * A.V.shape[1] * A.dtype.itemsize,
    }


def systems(p: Problem, effort: Effort) -> dict[str, Any]:
    """Damped systems with several right-hand sides."""
    G = p.build()
    draw = torch.Generator().manual_seed(1)
    B = torch.randn(G.shape[0], COLUMNS, generator=draw, dtype=torch.float64).to(G.dtype)
    found: dict[str, Tensor] = {}

    def run(name: str, solve: Callable[[GGNLinearOperator, Tensor], Tensor]) -> None:
        found[name] = solve(G, B)

    times = interleaved(
        {
            "factor": functools.partial(run, "factor", inverse_by_factor),
            "cg": functools.partial(run, "cg", inverse_by_cg),
        },
        CPU,
        effort,
    )
    gaps = {name: (G @ x + DAMPING * x - B).norm(dim=0).max() for name, x in found.items()}
    return {
        **asdict(p),
        "seconds": {name: asdict(t) for name, t in times.items()},
        "times faster": times["cg"].median / times["factor"].median,
        "residual": {name: float(gap / B.norm(dim=0).min()) for name, gap in gaps.items()},
    }


def measure(quick: bool) -> dict[str, list[dict[str, Any]]]:
    effort = Effort(repetitions=3 if quick else 7, seconds=10 if quick else 60)
    problems = [
        Problem("perceptron", 100, "float64"),
        Problem("perceptron", 100, "float32"),
    ]
    if not quick:
        problems.append(Problem("convolutions", 100, "float32"))
    values = [eigenvalues(p, effort) for p in problems]
    return {"eigenvalues": values, "systems": [systems(p, effort) for p in problems[:1]]}


def markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    out = (
        f"CPU seconds of one thread for the {TOP} largest eigenvalues of the Gauss-Newton "
        "matrix with eigenvectors: the factor form (columns, their verification, Gram "
        "matrix, eigenvectors) and `eigsh` on the linearised operator (linearisation "
        "included). 100 data, 10 classes: 1,000 columns. Residuals ‖G v − λ v‖ / λ_max are "
        "measured by products of the operator itself. Medians of interleaved runs. torch "
        f"{machine['torch']}, {machine['processor']}. Measured by `python "
        "benchmarks/lowrank.py --write`.\n\n"
        "| network | parameters | precision | factor (residual) | eigsh (residual) | times "
        "faster | values differ by |\n|---|---|---|---|---|---|---|\n"
    )
    for row in record["eigenvalues"]:
        t = {name: s["median"] for name, s in row["seconds"].items()}
        r = row["residual"]
        out += (
            f"| {row['network']} | {row['P']:,} | {row['precision']} | {t['factor']:.2f} "
            f"({r['factor']:.0e}) | {t['eigsh']:.2f} ({r['eigsh']:.0e}) | "
            f"{row['times faster']:.1f} | {row['difference']:.0e} |\n"
        )
    out += (
        "\n## The whole spectrum, and memory\n\nAll eigenvalues that are not zero, "
        "seconds; megabytes of what is kept and of the entries of V; seconds where only a "
        "quarter may be kept, and columns are derived anew.\n\n"
        "| network | precision | eigenvalues | all | kept, MB | V, MB | in a quarter |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for row in record["eigenvalues"]:
        t = {name: s["median"] for name, s in row["seconds"].items()}
        out += (
            f"| {row['network']} | {row['precision']} | {row['rank']} | "
            f"{t['all values']:.2f} | {row['kept bytes'] / 1e6:.1f} | "
            f"{row['bytes of V'] / 1e6:.0f} | {t['quarter of the memory']:.2f} |\n"
        )
    out += (
        f"\n## Linear systems\n\n{COLUMNS} right-hand sides at once, damping {DAMPING:g}, "
        f"seconds and largest relative residual; `cg` to {RTOL:g}.\n\n"
        "| network | precision | factor | cg | times faster |\n|---|---|---|---|---|\n"
    )
    for row in record["systems"]:
        t = {name: s["median"] for name, s in row["seconds"].items()}
        r = row["residual"]
        out += (
            f"| {row['network']} | {row['precision']} | {t['factor']:.2f} "
            f"({r['factor']:.0e}) | {t['cg']:.2f} ({r['cg']:.0e}) | "
            f"{row['times faster']:.1f} |\n"
        )
    return out


def main() -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first networks only")
    parser.add_argument("--write", action="store_true", help="write results/lowrank.*")
    args = parser.parse_args()
    record: dict[str, Any] = {
        "machine": machine(),
        **measure(args.quick),
    }
    if args.write:
        write("lowrank", record, markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
