"""The curvature of a small network, trained on 1,797 images of handwritten digits.

What it shows, always over the whole data set in mini-batches of uneven size:

1. the ten largest eigenvalues of the Hessian, the Gauss-Newton matrix (GGN) and the
   empirical Fisher (EF), by Lanczos on the linearised operators, each with the residual
   that proves it, and the lower end of the Hessian's spectrum;
2. one damped Gauss-Newton step, the linear system solved by conjugate gradients;
3. the trace of the Hessian with its standard error, and the sums of its rows;
4. a block of the Hessian and of the GGN against a dense matrix made without the library.

The figure of the three spectra goes to ``examples/output/quickstart.png``.
Run it with ``make demo``, or ``python examples/quickstart.py`` where curvop is installed
with its ``examples`` extra.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import curvop.functional
from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    Solution,
    cg,
    eigsh,
)

FIGURE = Path(__file__).parent / "output" / "quickstart.png"
BATCH_SIZES = [640, 512, 384, 200, 61]  # uneven on purpose: the result is the same
NUM_TABLE = 10  # eigenvalues in the table
NUM_FIGURE = 24  # eigenvalues in the figure
KRYLOV = 120  # vectors that Lanczos keeps
DAMPING = 1e-2
SEED = 0
# Okabe and Ito's colours with a marker each, told apart without colour too
STYLES = {
    "Hessian": {"color": "#0072B2", "marker": "o", "ls": "-", "ms": 5},
    "GGN": {"color": "#D55E00", "marker": "s", "ls": "--", "ms": 5},
    "EF": {"color": "#009E73", "marker": "^", "ls": ":", "ms": 6},
}

Batches = list[tuple[Tensor, Tensor]]


class Spectrum(NamedTuple):
    """One end of the spectrum of a matrix, the outermost eigenvalue first."""

    values: np.ndarray  # [k]
    residuals: np.ndarray  # [k], ‖A v - λ v‖ / max |λ|
    products: int
    seconds: float


# ------------------------------------------------------------------ data, network


def load_data() -> tuple[Tensor, Tensor, Batches]:
    """All images and labels, whole and cut into mini-batches."""
    digits = load_digits()
    X = torch.from_numpy(digits.data / 16.0)  # [1797, 64], in [0, 1]
    y = torch.from_numpy(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SEED))
    X, y = X[order], y[order]
    batches = list(zip(X.split(BATCH_SIZES), y.split(BATCH_SIZES), strict=True))
    return X, y, batches


def make_model() -> nn.Sequential:
    """64 -> 32 -> 10 with layer normalisation, in double precision."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 10)
    ).double()


def train(model: nn.Module, loss_func: nn.Module, batches: Batches) -> None:
    """Adam until the network has learned the digits, but not yet by heart."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bar = tqdm(range(12), desc=f"{'training':<25}", unit=" epochs")
    for _ in bar:
        for X, y in batches:
            optimizer.zero_grad()
            loss = loss_func(model(X), y)
            loss.backward()
            optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    optimizer.zero_grad(set_to_none=True)


# ------------------------------------------------------------- eigenvalues and CG


def eigenvalues(A: LinearOperator, k: int, end: str, label: str) -> Spectrum:
    """The ``k`` largest (``end="LA"``) or smallest ("SA") eigenvalues by Lanczos."""
    begin = time.perf_counter()
    found = eigsh(A, k, which=end, tol=1e-8, ncv=KRYLOV)
    seconds = time.perf_counter() - begin
    print(f"   eigsh, {label:<18} {found.status}, {found.num_matvecs} products")
    values, residuals = found.values.numpy(), found.residuals.numpy()
    outermost_first = np.argsort(-values if end == "LA" else values)
    return Spectrum(
        values[outermost_first],
        residuals[outermost_first] / np.abs(values).max(),
        found.num_matvecs,
        seconds,
    )


def gauss_newton_step(G: GGNLinearOperator, gradient: Tensor) -> Solution:
    """Solve ``(G + λI) δ = -g``."""
    damped = G.linearize() + DAMPING * IdentityLinearOperator.like(G)
    return cg(damped, -gradient, rtol=1e-6)


# ----------------------------------------------------------------- without curvop


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def dense_hessian(loss: Tensor, params: list[Tensor]) -> Tensor:
    """The Hessian of a scalar, row by row, by differentiating twice."""
    gradient = flat(torch.autograd.grad(loss, params, create_graph=True))
    rows = [flat(torch.autograd.grad(g, params, retain_graph=True)) for g in gradient]
    return torch.stack(rows)


def moved(model: nn.Module, step: Tensor) -> dict[str, Tensor]:
    """The parameters after a step, leaving the model alone."""
    named = dict(model.named_parameters())
    parts = step.split([p.numel() for p in named.values()])
    return {
        name: p.detach() + part.view_as(p)
        for (name, p), part in zip(named.items(), parts, strict=True)
    }


# ------------------------------------------------------------------------ sections


def report_spectra(
    operators: dict[str, LinearOperator],
) -> tuple[dict[str, Spectrum], Spectrum]:
    """Compute and print the top of three spectra, and the bottom of the Hessian's."""
    tops = {name: eigenvalues(A, NUM_FIGURE, "LA", name) for name, A in operators.items()}
    bottom = eigenvalues(operators["Hessian"], NUM_FIGURE, "SA", "Hessian's bottom")
    print(f"\n1. The {NUM_TABLE} largest eigenvalues (relative residual)\n")
    print("      " + "".join(f"{name:>22}" for name in tops))
    for i in range(NUM_TABLE):
        cells = (f"{s.values[i]:.6f} ({s.residuals[i]:.0e})" for s in tops.values())
        print(f"   {i + 1:2d} " + "".join(f"{cell:>22}" for cell in cells))
    work = (f"{s.products} products, {s.seconds:.1f} s" for s in tops.values())
    print("      " + "".join(f"{cell:>22}" for cell in work))
    print(
        f"\n   The Hessian's most negative eigenvalue is {bottom.values[0]:.6f} "
        f"({bottom.residuals[0]:.0e});\n   GGN and EF are positive semi-definite."
    )
    return tops, bottom


def report_step(
    G: GGNLinearOperator, model: nn.Module, loss_func: nn.Module, X: Tensor, y: Tensor
) -> None:
    """Take one damped Gauss-Newton step and print what it did to the loss."""
    loss = loss_func(model(X), y)
    gradient = flat(torch.autograd.grad(loss, list(model.parameters())))
    step = gauss_newton_step(G, gradient)
    residual = float(step.residual_norm / gradient.norm())
    there = moved(model, step.x)
    after = loss_func(torch.func.functional_call(model, there, (X,)), y)
    print(f"\n2. A Gauss-Newton step with damping {DAMPING:g}\n")
    print(f"   conjugate gradients   {step.status}, {step.iterations} iterations")
    print(f"   relative residual     {residual:.1e}")
    print(f"   loss                  {loss.item():.5f} -> {after.item():.5f}")


def report_trace_and_rows(
    H: HessianLinearOperator, model: nn.Module, loss_func: nn.Module, X: Tensor, y: Tensor
) -> None:
    """Print trace and row sums, the latter checked against a product with ones."""
    params = list(model.parameters())

    def loss() -> Tensor:
        return loss_func(model(X), y)

    trace = curvop.functional.hessian_trace(
        loss, params, num_samples=100, generator=torch.Generator().manual_seed(SEED)
    )
    rows = curvop.functional.hessian_row_sum(loss, params)
    ones = torch.ones(H.shape[1], dtype=H.dtype)
    error = (rows - H @ ones).norm() / rows.norm()
    print("\n3. Trace and row sums of the Hessian\n")
    print(f"   trace, 100 probes     {trace.value:.3f} ± {trace.standard_error:.3f}")
    print(f"   largest row sum       {rows.max().item():.5f}")
    print(f"   row sums against H @ 1, over mini-batches: relative error {error:.1e}")


def report_dense_check(
    model: nn.Sequential, loss_func: nn.Module, X: Tensor, y: Tensor, batches: Batches
) -> None:
    """Compare blocks with matrices that the library had no part in."""
    print("\n4. Against a dense matrix by plain double backward on the whole data\n")
    norm, last = list(model[1].parameters()), list(model[3].parameters())
    # in the last layer the network is linear, so that GGN and Hessian agree there
    for name, Operator, params in (
        ("Hessian, layer norm", HessianLinearOperator, norm),
        ("Hessian, last layer", HessianLinearOperator, last),
        ("GGN, last layer", GGNLinearOperator, last),
    ):
        dense = dense_hessian(loss_func(model(X), y), params)
        operator = Operator(model, loss_func, params, batches)
        error = (operator.to_dense() - dense).norm() / dense.norm()
        n = len(dense)
        print(f"   {name:<21} {n:>3} x {n:<3}  relative error {error:.1e}")


def draw(tops: dict[str, Spectrum], bottom: Spectrum, title: str, path: Path) -> None:
    """Draw the top of the three spectra, and next to it the bottom of the Hessian's."""
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 4.4), dpi=150, width_ratios=[3, 2], layout="constrained"
    )
    ranks = np.arange(1, NUM_FIGURE + 1)
    for name, top in tops.items():
        left.semilogy(ranks, top.values, label=name, **STYLES[name])
        left.annotate(
            name,
            (ranks[-1], top.values[-1]),
            (9, 0),
            textcoords="offset points",
            va="center",
            color=STYLES[name]["color"],
            weight="bold",
        )
    left.axvline(9.5, color="0.6", lw=1, zorder=0)
    left.text(
        9.8,
        0.96,
        "a gap after the 9th:\nnumber of classes − 1",
        color="0.35",
        va="top",
        transform=left.get_xaxis_transform(),
    )
    left.set_title(f"The {NUM_FIGURE} largest eigenvalues", loc="left")
    left.set_ylabel("eigenvalue (logarithmic)")
    left.set_xlim(0, NUM_FIGURE + 5)
    left.yaxis.set_major_formatter("{x:g}")
    left.set_xticks([1, 5, 10, 15, 20])

    right.plot(ranks, bottom.values, **STYLES["Hessian"])
    right.axhline(0, color="0.6", lw=1, zorder=0)
    right.annotate(
        "GGN and EF: none below zero",
        (ranks[-1], 0),
        (0, -5),
        textcoords="offset points",
        ha="right",
        va="top",
        color="0.35",
    )
    right.set_title(f"The Hessian's {NUM_FIGURE} smallest", loc="left")
    right.set_ylabel("eigenvalue (linear)")
    right.set_ylim(top=-0.08 * bottom.values[0])
    right.set_xticks([1, 5, 10, 15, 20])

    for ax in (left, right):
        ax.set_xlabel("rank, from the outermost")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.92")
        ax.set_axisbelow(True)
    fig.suptitle(
        "Curvature of a network of 2,474 parameters on 1,797 digits", weight="bold"
    )
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path)
    plt.close(fig)


def main() -> None:
    """Train, compute, print, draw."""
    begin = time.perf_counter()
    torch.set_num_threads(1)  # the products are tiny: threads would wait for each other
    X, y, batches = load_data()
    model, loss_func = make_model(), nn.CrossEntropyLoss()
    train(model, loss_func, batches)
    params = list(model.parameters())
    with torch.no_grad():
        accuracy = (model(X).argmax(1) == y).double().mean().item()
    print(
        f"\n{sum(p.numel() for p in params):,} parameters, {len(y):,} images in batches of "
        f"{', '.join(map(str, BATCH_SIZES))}; training accuracy {accuracy:.1%}\n"
    )

    H = HessianLinearOperator(model, loss_func, params, batches)
    G = GGNLinearOperator(model, loss_func, params, batches)
    E = EFLinearOperator(model, loss_func, params, batches)

    # Lanczos multiplies the same matrix a hundred times: keep what a data pass computes
    operators = {"Hessian": H, "GGN": G, "EF": E}
    tops, bottom = report_spectra({name: A.linearize() for name, A in operators.items()})
    report_step(G, model, loss_func, X, y)
    report_trace_and_rows(H, model, loss_func, X, y)
    report_dense_check(model, loss_func, X, y, batches)

    title = f"Curvature of a network of {H.shape[0]:,} parameters on {len(y):,} digits"
    draw(tops, bottom, title, FIGURE)
    print(f"\nFigure: {FIGURE}\nDone in {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
