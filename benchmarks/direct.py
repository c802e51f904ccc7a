"""The direct inverse of chain networks: time and memory against depth and width.

python benchmarks/direct.py             prints the tables
python benchmarks/direct.py --write     and writes results/direct.json, .md and .svg

A run of the direct inverse is all of it: derivatives, factors, one solution with one step
of refinement and the check of its residual.
"""

from __future__ import annotations

import os

# Threads that wait must not take the core from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from timing import CPU, WALL, Clock, Effort, interleaved
from torch import Tensor, nn
from writing import RESULTS, machine, write

from curvop import ChainHessianLinearOperator, HessianLinearOperator, minres

DAMPING = 1e-2
MAXITER = 2000  # of MINRES, which would need more where it does not get there
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Problem:
    """A perceptron with tanh, biases and cross-entropy, and a batch, in float64."""

    L: int
    w: int
    n: int

    def build(self) -> tuple[nn.Sequential, nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(self.L):
            layers += [nn.Linear(self.w, self.w), nn.Tanh()]
        model = nn.Sequential(*layers[:-1]).double()
        X = torch.randn(self.n, self.w, dtype=torch.float64)
        return model, nn.CrossEntropyLoss(), X, torch.randint(self.w, (self.n,))

    @property
    def num_params(self) -> int:
        return self.L * self.w * (self.w + 1)

    def right_hand_sides(self, K: int = 1) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        return torch.randn(self.num_params, K, generator=draw, dtype=torch.float64)


def direct(p: Problem, b: Tensor, damping: float) -> Tensor:
    model, loss_func, X, y = p.build()
    A = ChainHessianLinearOperator(model, loss_func, X, y)
    return A.inverse(damping) @ b


def hessian(p: Problem) -> HessianLinearOperator:
    model, loss_func, X, y = p.build()
    params = list(model.parameters())
    return HessianLinearOperator(
        model, loss_func, params, [(X, y)], check_deterministic=False, num_data=p.n
    )


def dense(p: Problem, b: Tensor, damping: float) -> Tensor:
    """Entries by our own products, then LAPACK."""
    H = hessian(p).to_dense()
    H.diagonal().add_(damping)
    return torch.linalg.solve(H, b)


def iterative(p: Problem, b: Tensor, damping: float) -> Tensor:
    """Our MINRES; its products are those of the chain, which are the quickest."""
    model, loss_func, X, y = p.build()
    A = ChainHessianLinearOperator(model, loss_func, X, y)
    x: Tensor = minres(A, b, shift=-damping, rtol=1e-10, maxiter=MAXITER).x
    return x


SOLVERS: dict[str, Callable[[Problem, Tensor, float], Tensor]] = {
    "direct": direct,
    "dense": dense,
    "MINRES": iterative,
}


def residual(p: Problem, x: Tensor, b: Tensor, damping: float) -> float:
    """By products that share nothing with the direct inverse."""
    return float((hessian(p) @ x + damping * x - b).norm() / b.norm())


def compare(
    problems: list[Problem],
    names: list[str],
    clock: Clock,
    effort: Effort,
    damping: float = DAMPING,
) -> Rows:
    """For each problem: seconds and residual of each solver, bytes that are kept.

    All problems take turns, so that their times can be compared.
    """
    found: dict[tuple[Problem, str], Tensor] = {}

    def run(p: Problem, name: str) -> None:
        found[p, name] = SOLVERS[name](p, p.right_hand_sides(), damping)

    runs = {
        f"{name} {p}": functools.partial(run, p, name) for p in problems for name in names
    }
    times = interleaved(runs, clock, effort)
    rows = []
    for p in problems:
        inverse = ChainHessianLinearOperator(*p.build()).inverse(damping)
        b = p.right_hand_sides()
        row = {
            **asdict(p),
            "parameters": p.num_params,
            "damping": damping,
            "clock": clock.name,
            "kept_bytes": inverse.nbytes(),
            "seconds": {name: asdict(times[f"{name} {p}"]) for name in names},
            "residual": {name: residual(p, found[p, name], b, damping) for name in names},
        }
        print(line(row), flush=True)
        rows.append(row)
    return rows


def columns(p: Problem, clock: Clock, effort: Effort, damping: float) -> dict[str, Any]:
    """One solution and 256 of them, factored once."""
    A = ChainHessianLinearOperator(*p.build())
    inverse = A.inverse(damping)
    one, many = p.right_hand_sides(), p.right_hand_sides(256)
    times = interleaved(
        {
            "derivatives": lambda: ChainHessianLinearOperator(*p.build()),
            "factors": lambda: A.inverse(damping),
            "1 column": lambda: inverse @ one,
            "256 columns": lambda: inverse @ many,
        },
        clock,
        effort,
    )
    seconds = {name: asdict(t) for name, t in times.items()}
    row = {**asdict(p), "damping": damping, "clock": clock.name, "seconds": seconds}
    print(row, flush=True)
    return row


def measure(quick: bool) -> dict[str, Rows]:
    effort = Effort(repetitions=3 if quick else 7, seconds=15 if quick else 40)
    once = Effort(repetitions=1, fewest=1)
    everything = list(SOLVERS)
    shallow, deep = ([4, 16], [64]) if quick else ([4, 8, 16], [32, 64, 128, 256, 512])
    depth = compare([Problem(L, 12, 4) for L in shallow], everything, CPU, effort)
    depth += compare([Problem(L, 12, 4) for L in deep], ["direct"], CPU, effort)
    if not quick:
        depth += compare([Problem(4096, 12, 4)], ["direct"], CPU, once)
    widths = [Problem(8, w, 1) for w in ([16, 64] if quick else [16, 64, 128, 256])]
    batches = [Problem(8, 16, n) for n in ([2] if quick else [2, 8, 32])]
    cores = [Problem(16, 12, 4), Problem(8, 16, 32)]
    return {
        "depth": depth,
        "width": [
            row
            for damping in (0.1, 1e-3)
            for row in compare(widths, ["direct"], CPU, effort, damping)
        ],
        "batch": compare(batches, everything, CPU, effort),
        "both cores": compare(
            cores[:1] if quick else cores, ["direct", "dense"], WALL, effort
        ),
        "columns": [
            columns(Problem(L, w, n), CPU, effort, damping)
            for L, w, n in [(16, 12, 4), (8, 8, 8), (8, 32, 1)]
            for damping in (0.1, 1e-3)
        ],
    }


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    cells = [row["L"], row["w"], row["n"], f"{row['parameters']:,}", f"{row['damping']:g}"]
    for name in SOLVERS:
        t = row["seconds"].get(name, {}).get("median", math.nan)
        r = row["residual"].get(name)
        cells.append("–" if r is None else f"{1e3 * t:,.0f} ({r:.0e})")
    cells.append(f"{row['kept_bytes'] / 1e6:.2f}")
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = (
    "| L | w | n | parameters | damping | direct | dense | MINRES | kept, MB |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)
TITLES = {
    "depth": "Depth",
    "width": "Width, one datum",
    "batch": "Batch",
    "both cores": "Wall time, both cores",
}


def markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    out = (
        "Milliseconds for one system, and its relative residual, measured by products that "
        "share nothing with the direct inverse. Direct: derivatives, factors, one solution "
        "with one refinement and its check. Dense: entries by our Hessian products, then "
        "LAPACK. MINRES: ours, relative tolerance 1e-10, at most "
        f"{MAXITER} iterations. Perceptrons of L linear layers of width w with biases and "
        "tanh, cross-entropy, n data, double precision, random right-hand side. CPU time "
        "of one thread unless said otherwise, medians of interleaved runs. torch "
        f"{machine['torch']}, {machine['processor']}. Measured by `python "
        "benchmarks/direct.py --write`.\n"
    )
    for key, title in TITLES.items():
        out += f"\n## {title}\n\n{HEAD}" + "\n".join(map(line, record[key])) + "\n"
    out += "\n## Many right-hand sides\n\nMilliseconds, one thread.\n\n"
    out += (
        "| L | w | n | damping | derivatives | factors | 1 column | 256 columns | ratio |\n"
    )
    out += "|---|---|---|---|---|---|---|---|---|\n"
    for row in record["columns"]:
        t = {name: 1e3 * s["median"] for name, s in row["seconds"].items()}
        ratio = t["256 columns"] / t["1 column"]
        cells = [row["L"], row["w"], row["n"], f"{row['damping']:g}"]
        cells += [f"{value:.1f}" for value in t.values()] + [f"{ratio:.1f}"]
        out += "| " + " | ".join(map(str, cells)) + " |\n"
    return out


plt.rcParams.update({"font.size": 9, "svg.hashsalt": "curvop"})
# Okabe and Ito's colours with a marker each, told apart without colour too
STYLES = {
    "direct": {"color": "#0072B2", "marker": "o", "ls": "-"},
    "dense": {"color": "#D55E00", "marker": "s", "ls": "--"},
    "MINRES": {"color": "#009E73", "marker": "^", "ls": ":"},
}


def draw(rows: Rows, path: Path) -> None:
    """Time against depth."""
    fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for name, style in STYLES.items():
        found = [r for r in rows if name in r["seconds"]]
        depths = [r["L"] for r in found]
        times = [r["seconds"][name]["median"] for r in found]
        ax.loglog(depths, times, **style)
        ax.annotate(
            name,
            (depths[-1], times[-1]),
            (7, 0),
            textcoords="offset points",
            color=style["color"],
            va="center",
        )
        if name == "direct":
            slope = [times[-1] * d / depths[-1] for d in depths]
            ax.loglog(depths, slope, color="0.7", lw=0.8, zorder=0)
            where, ticks = (depths[4], slope[4]), depths
    ax.annotate(
        "proportional to depth", where, (4, -12), textcoords="offset points", color="0.4"
    )
    ax.set_xticks(ticks, [f"{d:,}" for d in ticks])
    ax.minorticks_off()
    ax.set_xlim(3.4, 13000)
    ax.set_xlabel("linear layers")
    ax.set_ylabel("seconds for one system")
    w, n = rows[0]["w"], rows[0]["n"]
    ax.set_title(f"A damped Newton system, width {w}, {n} data", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def main() -> None:
    """Measure, print, and write JSON, Markdown and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks only")
    parser.add_argument("--write", action="store_true", help="write results/direct.*")
    args = parser.parse_args()
    record: dict[str, Any] = {
        "machine": machine(),
        **measure(args.quick),
    }
    if args.write:
        write("direct", record, markdown(record))
        draw(record["depth"], RESULTS / "direct.svg")
    print(markdown(record))


if __name__ == "__main__":
    main()
