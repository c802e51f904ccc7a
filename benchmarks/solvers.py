"""Iterations and products of the linear solvers, next to SciPy's.

python benchmarks/solvers.py            prints the tables
python benchmarks/solvers.py --write    and writes results/solvers.json, solvers.md
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import scipy.sparse.linalg
import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn
from writing import machine, write

import curvop

Rows = list[dict[str, Any]]


def digits_ggn() -> tuple[curvop.LinearOperator, Tensor]:
    """GGN of the network of examples/quickstart.py, linearised; the negative gradient."""
    digits = load_digits()
    X, y = torch.from_numpy(digits.data / 16.0), torch.from_numpy(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 10)
    ).double()
    loss_func = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        for rows in torch.arange(len(y)).split(512):
            optimizer.zero_grad()
            loss_func(model(X[rows]), y[rows]).backward()
            optimizer.step()
    params = list(model.parameters())
    gradient = torch.autograd.grad(loss_func(model(X), y), params)
    G = curvop.GGNLinearOperator(model, loss_func, params, [(X, y)])
    return G.linearize(), -torch.cat([g.flatten() for g in gradient])


def with_spectrum(values: Tensor) -> Tensor:
    draw = Generator().manual_seed(1)
    N = len(values)
    Q = torch.linalg.qr(torch.randn(N, N, generator=draw, dtype=torch.float64))[0]
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def preconditioners() -> Rows:
    """Iterations of cg on ``G + damping I`` to a relative residual of 1e-6."""
    G, b = digits_ggn()
    diagonal, rows = G.to_dense().diagonal(), []
    for damping in (1e-1, 1e-2, 1e-3, 1e-4):
        damped = G + damping * curvop.IdentityLinearOperator.like(G)
        seed = Generator().manual_seed(0)
        jacobi = curvop.jacobi_preconditioner(G, damping=damping, generator=seed)
        exact = curvop.jacobi_preconditioner(G, diagonal, damping=damping)
        row = {
            "damping": damping,
            "plain": curvop.cg(damped, b).iterations,
            "Jacobi": curvop.cg(damped, b, M=exact).iterations,
            "Jacobi, 64 probes": curvop.cg(damped, b, M=jacobi).iterations,
        }
        for rank in (30, 100, 200):
            seed = Generator().manual_seed(0)
            M = curvop.nystrom_preconditioner(G, rank, damping=damping, generator=seed)
            row[f"Nyström, rank {rank}"] = curvop.cg(damped, b, M=M).iterations
        rows.append(row)
    return rows


def next_to_scipy() -> Rows:
    """Iterations, seconds, and the relative residual reached; tolerance 1e-6 for both."""
    up = torch.logspace(0, -4, 1000, dtype=torch.float64)
    signs = torch.ones(1000, dtype=torch.float64)
    signs[::17][:60] = -1
    b = torch.randn(1000, generator=Generator().manual_seed(2), dtype=torch.float64)
    positive, indefinite = with_spectrum(up), with_spectrum(up.sqrt() * signs)
    rows = []
    for name, A, ours, theirs in (
        (
            "cg, condition 1e4",
            curvop.assume_psd(positive),
            curvop.cg,
            scipy.sparse.linalg.cg,
        ),
        (
            "minres, 59 negative eigenvalues",
            curvop.as_operator(indefinite),
            curvop.minres,
            scipy.sparse.linalg.minres,
        ),
    ):
        found, seconds = timed(lambda A=A, ours=ours: ours(A, b))
        rows.append(
            {
                "problem": name,
                "solver": "curvop",
                "says": found.status,
                "iterations": found.iterations,
                "residual": float((b - A @ found.x).norm() / b.norm()),
                "seconds": seconds,
            }
        )
        count = []
        (x, info), seconds = timed(
            lambda A=A, theirs=theirs, count=count: theirs(
                A.to_scipy(),
                b.numpy(),
                rtol=1e-6,
                maxiter=100_000,
                callback=lambda _: count.append(1),
            )
        )
        residual = b - A @ torch.from_numpy(x)
        rows.append(
            {
                "problem": name,
                "solver": "SciPy",
                "says": "converged" if info == 0 else f"info {info}",
                "iterations": len(count),
                "residual": float(residual.norm() / b.norm()),
                "seconds": seconds,
            }
        )
    return rows


def sharing() -> Rows:
    """Whole damping path and many columns: together, and one after the other."""
    G, b = digits_ggn()
    shifts = torch.logspace(0, -3, 20, dtype=torch.float64).tolist()
    identity = curvop.IdentityLinearOperator.like(G)
    path, together = timed(lambda: curvop.cg_shifts(G, b, shifts))
    one_by_one, apart = timed(
        lambda: [curvop.cg(G + shift * identity, b) for shift in shifts]
    )
    rows = [
        {
            "what": f"{len(shifts)} dampings from 1 to 1e-3",
            "iterations together": path.iterations,
            "one by one": sum(s.iterations for s in one_by_one),
            "seconds together": together,
            "seconds one by one": apart,
            "largest difference": max(
                float((x - s.x).norm() / s.x.norm())
                for x, s in zip(path.x.T, one_by_one, strict=True)
            ),
        }
    ]
    draw = Generator().manual_seed(3)
    B = torch.randn(G.shape[0], 16, generator=draw, dtype=torch.float64)
    damped = G + 1e-2 * identity
    block, together = timed(lambda: curvop.cg(damped, B))
    one_by_one, apart = timed(lambda: [curvop.cg(damped, column) for column in B.T])
    rows.append(
        {
            "what": "16 right-hand sides, damping 1e-2",
            "iterations together": block.iterations,
            "one by one": sum(s.iterations for s in one_by_one),
            "seconds together": together,
            "seconds one by one": apart,
            "largest difference": max(
                float((x - s.x).norm() / s.x.norm())
                for x, s in zip(block.x.T, one_by_one, strict=True)
            ),
        }
    )
    return rows


def table(rows: Rows) -> str:
    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.2g}" if math.isfinite(value) else "–"

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(map(cell, row.values())) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write results/solvers.*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "Iterations of cg on the damped GGN of the digits network": preconditioners(),
        "Next to SciPy, on matrices with known spectra, N = 1000": next_to_scipy(),
        "Sharing products": sharing(),
    }
    setting = f"torch {torch.__version__}, SciPy {scipy.__version__}, one thread of a CPU"
    page = f"# Linear solvers\n\nTolerance 1e-6 throughout. {setting}.\n"
    for title, rows in parts.items():
        page += f"\n## {title}\n\n{table(rows)}\n"
    print(page)
    if args.write:
        record = {"machine": machine(), "setting": setting, **parts}
        write("solvers", record, page)


if __name__ == "__main__":
    main()
