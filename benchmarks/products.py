"""Products side by side with curvlinops: CPU time, one thread, in gradients per column.

make bench                                     everything; writes results/
python benchmarks/products.py mlp gpt --columns 1 --repetitions 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import curvlinops
import torch
from networks import WORKLOADS, Workload
from timing import Timing, interleaved
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvop

RESULTS = Path(__file__).parent / "results"
MATRICES = {
    "Hessian": (curvop.HessianLinearOperator, curvlinops.HessianLinearOperator),
    "GGN": (curvop.GGNLinearOperator, curvlinops.GGNLinearOperator),
    "EF": (curvop.EFLinearOperator, curvlinops.EFLinearOperator),
}


def contestants(w: Workload, matrix: str, columns: int) -> tuple[dict[str, Any], float]:
    """What to time, and the seconds that linearising took."""
    ours, theirs = MATRICES[matrix]
    torch.manual_seed(1)
    v = torch.randn(w.num_params) if columns == 1 else torch.randn(w.num_params, columns)
    fixed = {
        "check_deterministic": False,
        "num_data": sum(len(X) for X, _ in w.data),
    }
    A = ours(w.model, w.loss_func, w.params, w.data, **fixed)
    start = time.process_time()
    L = A.linearize()
    setup = time.process_time() - start
    B = theirs(w.model, w.loss_func, w.params, w.data, **fixed)
    return {
        "gradient": lambda: gradient(w),
        "curvop": lambda: A @ v,
        "curvop, linearised": lambda: L @ v,
        "curvlinops": with_math_attention(lambda: B @ v),
    }, setup


def gradient(w: Workload) -> None:
    """One gradient over all batches: the unit of cost."""
    for X, y in w.data:
        torch.autograd.grad(w.loss_func(w.model(X), y), w.params)


def with_math_attention(run: Callable[[], object]) -> Callable[[], object]:
    """What a user of curvlinops must do by hand for attention."""

    def wrapped() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return run()

    return wrapped


def construction(w: Workload, matrix: str) -> dict[str, Callable[[], object]]:
    """Building each operator with its determinism check."""
    ours, theirs = MATRICES[matrix]
    args = (w.model, w.loss_func, w.params, w.data)
    return {
        "gradient": lambda: gradient(w),
        "curvop": lambda: ours(*args),
        "curvlinops": with_math_attention(lambda: theirs(*args)),
    }


def measure(names: list[str], columns: list[int], repetitions: int) -> list[dict[str, Any]]:
    """All rows of the table."""
    rows = []
    for name in names:
        torch.manual_seed(0)
        w = WORKLOADS[name]()
        for matrix in MATRICES:
            for k in columns:
                runs, setup = contestants(w, matrix, k)
                times = interleaved(runs, repetitions)
                rows.append(row(w, matrix, f"{k} column" + "s" * (k > 1), k, times))
                rows[-1]["setup_in_gradients"] = setup / times["gradient"].median
                print(line(rows[-1]), flush=True)
            times = interleaved(construction(w, matrix), max(3, repetitions // 2))
            rows.append(row(w, matrix, "construction", 1, times))
            print(line(rows[-1]), flush=True)
    return rows


def row(
    w: Workload, matrix: str, what: str, k: int, times: dict[str, Timing]
) -> dict[str, Any]:
    """One measurement, in gradients per column."""
    unit = times["gradient"].median * k
    return {
        "network": w.name,
        "parameters": w.num_params,
        "matrix": matrix,
        "what": what,
        "gradient_seconds": times["gradient"].median,
        "in_gradients": {n: t.median / unit for n, t in times.items() if n != "gradient"},
        "seconds": {n: asdict(t) for n, t in times.items()},
    }


def line(r: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    cost = r["in_gradients"]
    peer = cost["curvlinops"]
    cells = []
    for name in ("curvlinops", "curvop", "curvop, linearised"):
        if name not in cost:
            cells.append("–")
        elif name == "curvlinops":
            cells.append(f"{peer:.2f}")
        else:
            cells.append(f"{cost[name]:.2f} ({cost[name] / peer:.2f})")
    setup = f"{r['setup_in_gradients']:.0f}" if "setup_in_gradients" in r else "–"
    return " | ".join(["", r["network"], r["matrix"], r["what"], *cells, setup, ""]).strip()


def main() -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--columns", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write results/products.*")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = measure(args.networks, args.columns, args.repetitions)
    if not args.write:
        return
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        "curvop": curvop.__version__,
        **{p: version(p) for p in ("torch", "curvlinops-for-pytorch")},
    }
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": machine, "repetitions": args.repetitions, "rows": rows}
    (RESULTS / "products.json").write_text(json.dumps(record, indent=1) + "\n")
    head = (
        "CPU time per column in full gradients over the same data, one thread, float32, "
        f"medians of {args.repetitions} interleaved runs; in brackets the ratio to "
        f"curvlinops {machine['curvlinops-for-pytorch']}. torch {machine['torch']}. "
        "Set-up of the linearised form in gradients, once.\n\n"
        "| network | matrix | what | curvlinops | curvop | curvop, linearised | set-up |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    (RESULTS / "products.md").write_text(head + "\n".join(map(line, rows)) + "\n")


if __name__ == "__main__":
    main()
