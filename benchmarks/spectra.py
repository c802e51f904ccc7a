"""eigsh: known spectra, the Hessian of a digits network against ARPACK, memory.

python benchmarks/spectra.py             prints the tables; takes minutes
python benchmarks/spectra.py --write     writes results/spectra.* as well
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from writing import machine, write

import curvop
from curvop.operators import Blocks, LinearOperator
from curvop.spectra import eigsh

Row = dict[str, Any]


# ---------------------------------------------------------------- known spectra


def spectra() -> dict[str, Tensor]:
    """Eigenvalues of the matrices of the first table."""

    def linspace(low: float, high: float, n: int) -> Tensor:
        return torch.linspace(low, high, n, dtype=torch.float64)

    return {
        "condition 1e8": torch.logspace(-8, 0, 300, dtype=torch.float64),
        "60 negative": torch.cat([linspace(-1, -0.1, 60), linspace(0, 2, 940)]),
        "five-fold top": torch.cat([torch.ones(5), linspace(0, 0.9, 995)]).double(),
        "rank 2": torch.cat([torch.tensor([2.0, -1.0]), torch.zeros(298)]).double(),
        "bulk and 10 outliers": torch.cat(
            [10 ** linspace(-6, -2, 2990), linspace(0.1, 3, 10)]
        ),
    }


def known_spectra() -> list[Row]:
    """Errors against dense eigenvalues, relative to the norm."""
    rows = []
    for name, spectrum in spectra().items():
        N, k = len(spectrum), 10
        draw = torch.Generator().manual_seed(0)
        Q = torch.linalg.qr(torch.randn(N, N, generator=draw, dtype=torch.float64)).Q
        A = (Q * spectrum) @ Q.T
        A = (A + A.T) / 2
        dense = torch.linalg.eigvalsh(A)
        magnitude = dense[dense.abs().argsort()[-k:]].sort().values
        for which, truth in (("LA", dense[-k:]), ("LM", magnitude)):
            pairs = eigsh(A, k, which=which, tol=1e-10)
            rows.append(
                {
                    "matrix": name,
                    "N": N,
                    "which": which,
                    "products": pairs.num_matvecs,
                    "error": float((pairs.values - truth).abs().max() / dense.abs().max()),
                    "residual": float(pairs.residuals.max() / dense.abs().max()),
                    "status": pairs.status,
                }
            )
            print(rows[-1], flush=True)
    return rows


# ----------------------------------------------------------- a Hessian, and ARPACK


class Timed(LinearOperator):
    """The same operator, with the number of its products and their time."""

    def __init__(self, A: LinearOperator) -> None:
        super().__init__(
            A.input_space, A.input_space, dtype=A.dtype, device=A.device, symmetric=True
        )
        self._A = A
        self.tally = {"products": 0, "seconds": 0.0}

    def _matmat(self, M: Blocks) -> Blocks:
        start = time.perf_counter()
        AM = self._A._matmat(M)
        self.tally["seconds"] += time.perf_counter() - start
        self.tally["products"] += M[0].shape[-1]
        return AM

    def _transpose(self) -> LinearOperator:
        return self


def digits_hessian() -> LinearOperator:
    """Of a trained network with 21,570 parameters on 1,797 images, linearised."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    X, y = torch.from_numpy(digits.data / 16.0), torch.from_numpy(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    batches = list(zip(X[order].split(600), y[order].split(600), strict=True))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 280), nn.LayerNorm(280), nn.GELU(), nn.Linear(280, 10)
    ).double()
    loss_func = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss_func(model(inputs), targets).backward()
            optimizer.step()
    params = list(model.parameters())
    return curvop.HessianLinearOperator(model, loss_func, params, batches).linearize()


def against_arpack(k: int = 20) -> list[Row]:
    """The top of the Hessian from the same start vector, at the same tolerance."""
    H = digits_hessian()
    v0 = torch.randn(
        H.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    H @ v0  # warm
    rows: list[Row] = []
    ratio = 1.0
    for tol in (1e-4, 1e-6, 1e-8, 1e-10, 0.0):
        for solver in ("ARPACK", "curvop", "curvop, as strict as ARPACK"):
            A = Timed(H)
            start = time.perf_counter()
            if solver == "ARPACK":
                exported = A.to_scipy()
                values, V = scipy.sparse.linalg.eigsh(
                    exported, k, which="LA", tol=tol, v0=v0.numpy()
                )
                vectors = torch.from_numpy(np.ascontiguousarray(V))
            else:
                # ARPACK's tolerance is relative to each value, ours to the norm
                used = tol * ratio if "strict" in solver else tol
                pairs = eigsh(A, k, which="LA", tol=used, v0=v0)
                values, vectors = pairs.values.numpy(), pairs.vectors
                assert pairs.num_matvecs == A.tally["products"]
            seconds = time.perf_counter() - start
            ratio = float(abs(values).min() / abs(values).max())
            R = H @ vectors - vectors * torch.from_numpy(np.ascontiguousarray(values))
            rows.append(
                {
                    "tol": tol,
                    "solver": solver,
                    "products": A.tally["products"],
                    "seconds": seconds,
                    "outside": 1 - A.tally["seconds"] / seconds,
                    "residual": float(R.norm(dim=0).max() / abs(values).max()),
                }
            )
            print(rows[-1], flush=True)
    return rows


# -------------------------------------------------------------------------- memory


def peak_of_a_run(N: int, k: int) -> Row:
    """Peak resident memory over that before, in vectors; needs a process of its own."""
    draw = torch.Generator().manual_seed(0)
    d = torch.rand(N, generator=draw)
    d[:k] = torch.linspace(2, 4, k)
    A = curvop.DiagonalLinearOperator(d)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE")
    start = time.perf_counter()
    pairs = eigsh(A, k, which="LA", tol=1e-5)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "N": N,
        "k": k,
        "ncv": max(2 * k + 1, 20),
        "peak_vectors": (peak - before) / (4 * N),
        "products": pairs.num_matvecs,
        "seconds": seconds,
        "error": float((pairs.values - d[:k]).abs().max() / 4),
        "status": pairs.status,
    }


def memory() -> Row:
    """The same in a fresh process."""
    run = [sys.executable, __file__, "--peak"]
    row: Row = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    print(row, flush=True)
    return row


# --------------------------------------------------------------------------- tables


def tables(record: Row) -> str:
    """The results as Markdown."""
    lines = [
        "# Eigenpairs\n",
        "## Known spectra\n",
        "`tol=1e-10`, 10 pairs, double precision; errors against `torch.linalg.eigvalsh` "
        "and residuals, both relative to the norm.\n",
        "| matrix | N | which | products | error | residual | status |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["known spectra"]:
        lines.append(
            f"| {r['matrix']} | {r['N']} | {r['which']} | {r['products']} | "
            f"{r['error']:.0e} | {r['residual']:.0e} | {r['status']} |"
        )
    lines += [
        "\n## The Hessian of a digits network\n",
        "21,570 parameters, 1,797 images, double precision, linearised, one thread; the 20 "
        "largest eigenvalues from the same start vector, each with its default number of "
        "Lanczos vectors (41 and "
        f"{record['default ncv']}). Products of curvop include those that look for missed "
        "copies and check the residuals. ARPACK's tolerance is relative to each "
        "eigenvalue, curvop's to the norm; the third row of each tolerance asks curvop for "
        "residuals as small as ARPACK's.\n",
        "| tol | solver | products | of ARPACK's | time outside products | "
        "largest residual / norm |",
        "|---|---|---|---|---|---|",
    ]
    reference = 1
    for r in record["digits Hessian"]:
        reference = r["products"] if r["solver"] == "ARPACK" else reference
        lines.append(
            f"| {r['tol']:.0e} | {r['solver']} | {r['products']} | "
            f"{r['products'] / reference:.2f} | {r['outside']:.1%} | {r['residual']:.0e} |"
        )
    m = record["memory"]
    lines += [
        "\n## Memory\n",
        f"A diagonal matrix with N = {m['N']:,} in single precision, k = {m['k']}, "
        f"ncv = {m['ncv']}: peak of {m['peak_vectors']:.1f} vectors over the process "
        f"before (limit {m['ncv'] + 10}), {m['products']} products in "
        f"{m['seconds']:.0f} s, error {m['error']:.0e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write results/spectra.*")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(json.dumps(peak_of_a_run(5_000_000, 10)))
        return
    record = {
        "machine": machine("scipy"),
        "default ncv": max(41, min(300, 2**20 // 21_570)),
        "memory": memory(),
        "digits Hessian": against_arpack(),
        "known spectra": known_spectra(),
    }
    print(tables(record))
    if args.write:
        write("spectra", record, tables(record))


if __name__ == "__main__":
    main()
