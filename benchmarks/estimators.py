"""Error of trace and diagonal against the number of products, for each method.

python benchmarks/estimators.py            prints the table
python benchmarks/estimators.py --write    and writes results/estimators.*
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from writing import machine, write

import curvop

PRODUCTS = [12, 30, 60, 120, 240]
TRACES = ("hutchinson", "hutch++", "xtrace")
DIAGONALS = ("hutchinson", "xdiag")


def with_spectrum(values: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    draw = torch.Generator().manual_seed(0)
    N = len(values)
    U = torch.linalg.qr(torch.randn(N, N, generator=draw, dtype=torch.float64))[0]
    A = (U * values) @ U.T
    return (A + A.T) / 2


def digits_ggn() -> Tensor:
    """The GGN of 64-16-10 after a few epochs on the digits, dense: 1,210 parameters."""
    digits = load_digits()
    X, y = torch.from_numpy(digits.data / 16.0), torch.from_numpy(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    loss_func = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss_func(model(X), y).backward()
        optimizer.step()
    params = list(model.parameters())
    G = curvop.GGNLinearOperator(model, loss_func, params, [(X, y)]).to_dense()
    return (G + G.T) / 2


def matrices() -> Iterator[tuple[str, Tensor]]:
    """Name and dense matrix."""
    i = torch.arange(1000, dtype=torch.float64)
    yield "flat, 1 to 3", with_spectrum(1 + 2 * i / 1000)
    yield "decaying, 1/i²", with_spectrum((1 + i) ** -2)
    yield "GGN of the digits network", digits_ggn()


def row(name: str, what: str, truth: Tensor, runs: list[Any]) -> dict[str, Any]:
    """Error, claimed error and coverage, of many runs of one estimator."""
    values = torch.stack([torch.as_tensor(e.value) for e in runs])
    errors = torch.stack([torch.as_tensor(e.standard_error) for e in runs])
    off, scale = (values - truth).abs(), float(truth.norm())
    n = off[0].numel()
    return {
        "matrix": name,
        "estimator": what,
        "products": statistics.mean(e.num_matvecs for e in runs),
        "relative_error": float(off.square().mean().sqrt()) * n**0.5 / scale,
        "claimed": float(errors.square().mean().sqrt()) * n**0.5 / scale,
        "covered": float((off <= 3 * errors).double().mean()),
    }


def measure(runs: int) -> list[dict[str, Any]]:
    """All rows."""
    rows = []
    for name, A in matrices():
        operator = curvop.DenseLinearOperator(A)
        for n in PRODUCTS:
            options = {"num_matvecs": n, "chunk_size": 32}
            for method in TRACES:
                estimates = [
                    curvop.trace(operator, method=method, generator=seeded(s), **options)
                    for s in range(runs)
                ]
                rows.append(row(name, f"trace, {method}", A.trace(), estimates))
            for method in DIAGONALS:
                if n > 120:
                    continue
                estimates = [
                    curvop.diagonal(operator, method=method, generator=seeded(s), **options)
                    for s in range(max(4, runs // 10))
                ]
                rows.append(row(name, f"diagonal, {method}", A.diag(), estimates))
            print(name, n, flush=True)
    return rows


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each matrix and estimator, a column for each number."""
    lines = [
        "| matrix | estimator | " + " | ".join(f"{n} products" for n in PRODUCTS) + " |",
        "|---|---|" + "---|" * len(PRODUCTS),
    ]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for r in rows:
        text = f"{r['relative_error']:.1e} ({r['claimed']:.1e}, {r['covered']:.1%})"
        cells.setdefault((r["matrix"], r["estimator"]), {})[r["products"]] = text
    for (matrix, estimator), by in cells.items():
        values = " | ".join(by.get(n, "–") for n in PRODUCTS)
        lines.append(f"| {matrix} | {estimator} | {values} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write results/estimators.*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.runs)
    head = (
        f"Root mean square of the relative error over {args.runs} seeds (of a diagonal in "
        f"the 2-norm, over {max(4, args.runs // 10)}); in brackets the standard error that "
        "was reported, likewise, and how often three of them covered the truth (of a "
        f"diagonal each entry). Double precision, torch {torch.__version__}.\n\n"
    )
    print(table(rows))
    if args.write:
        record = {
            "machine": machine(),
            "runs": args.runs,
            "rows": rows,
        }
        write("estimators", record, head + table(rows) + "\n")


if __name__ == "__main__":
    main()
