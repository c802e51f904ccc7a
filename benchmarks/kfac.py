"""KFAC beside curvlinops: factors, products, inverse products, peak memory.

python benchmarks/kfac.py               prints the tables
python benchmarks/kfac.py --write       and writes results/kfac.json and .md
    ... --networks gpt cnn              some networks; the other rows stay

Both compute the same matrix: of the linear layers and convolutions, which is what
curvlinops supports, weights and biases apart, without a determinism check, with the number
of data told. Times are medians of interleaved runs in one process.
"""

from __future__ import annotations

import os

# Threads that wait must not take the core from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import curvlinops
import networks
import torch
from memory import ENVIRONMENT, held, highest, limit_memory
from networks import Workload
from timing import CPU, Effort, Failure, attempt, interleaved
from torch import Tensor, nn
from writing import RESULTS, machine, write

import curvop

RESULT = RESULTS / "kfac.json"
OURS, THEIRS = "curvop", "curvlinops"
KINDS = ("type-2", "mc")
DAMPING = 1e-2
COLUMNS = (1, 8)
LARGE = 5_000_000  # parameters: one column is enough, and takes a second
EQUAL = 1.02  # what timing cannot tell apart
TARGETS = {"factors": 0.6, "product": 1.0, "inverse": 1.0, "memory": 1.0}


def parameters(w: Workload) -> list[nn.Parameter]:
    """Those of the layers that curvlinops supports; a tied head is none of them."""
    layers = [m for m in w.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    tables = [m for m in w.model.modules() if isinstance(m, nn.Embedding)]
    tied = {id(p) for m in tables for p in m.parameters()}
    return [p for m in layers for p in m.parameters() if id(p) not in tied]


def ours(w: Workload, kind: str) -> curvop.KFACLinearOperator:
    return curvop.KFACLinearOperator(
        w.model,
        w.loss_func,
        parameters(w),
        w.data,
        fisher_type=kind,
        check_deterministic=False,
        num_data=w.num_data,
        terms_together=True,  # as curvlinops does, whether tokens mix or not
    )


def theirs(w: Workload, kind: str) -> curvlinops.KFACLinearOperator:
    K = curvlinops.KFACLinearOperator(
        w.model,
        w.loss_func,
        parameters(w),
        w.data,
        fisher_type=kind,
        check_deterministic=False,
        num_data=w.num_data,
        num_per_example_loss_terms=w.num_terms // w.num_data,
    )
    K.compute_kronecker_factors()
    return K


BUILD: dict[str, Callable[[Workload, str], Any]] = {OURS: ours, THEIRS: theirs}


def inverse(K: Any, method: str) -> Any:
    """With the damping added exactly, or split between the factors."""
    if isinstance(K, curvop.KFACLinearOperator):
        return K.inverse(DAMPING, method=method)
    return curvlinops.KFACInverseLinearOperator(
        K,
        damping=DAMPING,
        use_exact_damping=method == "exact",
        use_heuristic_damping=method == "heuristic",
    )


def measure(network: str, effort: Effort) -> list[dict[str, Any]]:
    """All rows of a network."""
    torch.manual_seed(0)
    w = networks.ON_CPU[network]()
    rows = []

    def add(what: str, runs: dict[str, Callable[[], object]], **more: Any) -> None:
        times = interleaved(runs, CPU, effort)
        values = {name: asdict(t) for name, t in times.items()}
        rows.append({"network": network, "name": w.name, "what": what, **more, **values})
        print(line(rows[-1]), flush=True)

    made = {name: build(w, "type-2") for name, build in BUILD.items()}
    P = sum(p.numel() for p in parameters(w))
    draw = torch.Generator().manual_seed(0)
    V = torch.randn(P, max(COLUMNS), generator=draw)
    difference = _difference(made, V)
    for kind in KINDS:
        runs = {name: _run(build, w, kind) for name, build in BUILD.items()}
        add("factors", runs, option=kind, **({} if kind == "mc" else {"error": difference}))
    columns = COLUMNS[:1] if P > LARGE else COLUMNS
    for k in columns:
        v = V[:, 0] if k == 1 else V[:, :k].clone()
        add(
            "product",
            {n: _times(K, v) for n, K in made.items()},
            option=f"{k} column{'s' * (k > 1)}",
        )
    for method in ("exact", "heuristic"):
        inverses = {name: inverse(K, method) for name, K in made.items()}
        more = {"error": _difference(inverses, V[:, 0])} if method == "exact" else {}
        for k in columns:
            v = V[:, 0] if k == 1 else V[:, :k].clone()
            runs = {n: _times(A, v) for n, A in inverses.items()}
            add("inverse", runs, option=f"{method}, {k} column{'s' * (k > 1)}", **more)
    for kind in KINDS:
        row = {name: attempt(peak, network, name, kind) for name in BUILD}
        values = {
            n: asdict(b) if isinstance(b, Failure) else {"median": b}
            for n, b in row.items()
        }
        rows.append(
            {"network": network, "name": w.name, "what": "memory", "option": kind, **values}
        )
        print(line(rows[-1]), flush=True)
    return rows


def _run(build: Callable[[Workload, str], Any], w: Workload, kind: str) -> Any:
    return lambda: build(w, kind)


def _times(A: Any, v: Tensor) -> Any:
    return lambda: A @ v


def _difference(made: dict[str, Any], V: Tensor) -> float:
    """Of the products, relative."""
    a, b = made[OURS] @ V, made[THEIRS] @ V
    return float((a - b).norm() / b.norm())


def peak(network: str, contender: str, kind: str) -> int:
    """Bytes at the peak above those held before, in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kfac"])
    os.environ.update(ENVIRONMENT)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, network, contender, kind).result()


def _peak(network: str, contender: str, kind: str) -> int:
    torch.set_num_threads(1)
    limit_memory()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    w = networks.ON_CPU[network]()
    w.gradient()  # libraries load and set up
    BUILD[contender](networks.tiny(), kind)
    before = held("cpu")
    K = BUILD[contender](w, kind)
    size = highest("cpu") - before
    del K
    return size


# ------------------------------------------------------------------------ tables


def ratio(row: dict[str, Any]) -> float:
    a, b = (row[name].get("median") for name in (OURS, THEIRS))
    return float("nan") if not a or not b else a / b


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    scale, digits = (1e-6, 0) if row["what"] == "memory" else (1e3, 2)
    cells = [row["name"], row["option"]]
    for name in (OURS, THEIRS):
        median = row[name].get("median")
        cells.append("fails" if median is None else f"{median * scale:.{digits}f}")
    r = ratio(row)
    aim = TARGETS[row["what"]] * (1 if row["what"] == "factors" else EQUAL)
    cells.append(f"{r:.2f}" + ("" if r <= aim else " (missed)"))
    return "| " + " | ".join(cells) + " |"


TITLES = {
    "factors": "Factors, milliseconds (aim: at most 0.6)",
    "product": "Products, milliseconds (aim: no slower)",
    "inverse": "Products with the inverse, milliseconds (aim: no slower)",
    "memory": "Peak memory of the factors, megabytes (aim: no higher)",
}


def markdown(record: dict[str, Any]) -> str:
    """All tables."""
    m = record["machine"]
    out = (
        "KFAC of the linear layers and convolutions of the benchmark's networks, in single "
        f"precision, beside curvlinops {m['curvlinops']}. CPU time of one thread, medians "
        f"of interleaved runs in one process; torch {m['torch']}, {m['processor']}. Neither"
        " checks for determinism. GPT: the columns of all tokens together, as curvlinops "
        "does it. Heuristic damping: curvlinops gives a bias the damping of its weight's "
        "factor, curvop its own. Measured by `python benchmarks/kfac.py --write`.\n"
    )
    largest = max(r["error"] for r in record["rows"] if "error" in r)
    out += f"\nLargest relative difference of the results: {largest:.0e}.\n"
    for what, title in TITLES.items():
        out += f"\n## {title}\n\n| network | | curvop | curvlinops | ratio |\n"
        out += "|---|---|---|---|---|\n"
        out += "\n".join(line(r) for r in record["rows"] if r["what"] == what) + "\n"
    return out


def kept(network: str) -> list[dict[str, Any]]:
    """The rows of an earlier run."""
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    return [row for row in rows if row["network"] == network]


def main() -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--write", action="store_true", help="write results/kfac.*")
    parser.add_argument("--networks", nargs="*", default=list(networks.ON_CPU))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    effort = Effort(repetitions=3 if args.quick else 9, seconds=10 if args.quick else 20)
    rows = {name: measure(name, effort) for name in args.networks}
    record = {
        "machine": machine("curvlinops-for-pytorch"),
        "rows": [row for name in networks.ON_CPU for row in rows.get(name, kept(name))],
    }
    if args.write:
        write("kfac", record, markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
