"""Every curvature matrix of one small network, as a picture.

What it shows: a network of 43 parameters, trained on the 150 flowers of the iris data.
That is small enough to print each matrix in full: the Hessian and its relatives, their
cheap approximations, and an inverse. Lines separate the parameters. Under each picture is
how far the matrix is from the one it approximates.

The figure goes to ``examples/output/visual_tour.png``. Run it with
``python examples/visual_tour.py`` where curvop is installed with its ``examples`` extra.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from sklearn.datasets import load_iris
from torch import Tensor, nn

from curvop import (
    EFDiagonalLinearOperator,
    EFLinearOperator,
    EKFACLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianDiagonalLinearOperator,
    HessianLinearOperator,
    IdentityLinearOperator,
    JacobianLinearOperator,
    KFACLinearOperator,
    LinearOperator,
)

FIGURE = Path(__file__).parent / "output" / "visual_tour.png"
DAMPING = 1e-2
LAYERS = {"W₁": 20, "b₁": 5, "W₂": 15, "b₂": 3}  # parameters of each


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """4 -> 5 -> 3, after 60 steps of Adam."""
    iris = load_iris()
    X = torch.from_numpy(iris.data)
    X, y = (X - X.mean(0)) / X.std(0), torch.from_numpy(iris.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, X, y


def matrices(model: nn.Module, X: Tensor, y: Tensor) -> dict[str, LinearOperator]:
    """What is drawn, in order."""
    loss_func, params = nn.CrossEntropyLoss(), dict(model.named_parameters())
    batches = list(zip(X.split(64), y.split(64), strict=True))
    problem = (model, loss_func, params, batches)
    G = GGNLinearOperator(*problem)
    return {
        "Hessian": HessianLinearOperator(*problem),
        "GGN": G,
        "empirical Fisher": EFLinearOperator(*problem),
        "sampled Fisher": GGNLinearOperator(*problem, mc_samples=1, seed=0),
        "Hessian, by layer": HessianLinearOperator(*problem, block_sizes=[2, 2]),
        "GGN, by layer": GGNLinearOperator(*problem, block_sizes=[2, 2]),
        "KFAC": KFACLinearOperator(*problem, separate_weight_and_bias=False),
        "EKFAC": EKFACLinearOperator(*problem, separate_weight_and_bias=False),
        "Hessian's diagonal": HessianDiagonalLinearOperator(*problem),
        "GGN's diagonal": GGNDiagonalLinearOperator(*problem),
        "EF's diagonal": EFDiagonalLinearOperator(*problem),
        "damped GGN": G + DAMPING * IdentityLinearOperator.like(G),
    }


APPROXIMATES = {  # the matrix that another is compared with
    "GGN": "Hessian",
    "empirical Fisher": "GGN",
    "sampled Fisher": "GGN",
    "Hessian, by layer": "Hessian",
    "GGN, by layer": "GGN",
    "KFAC": "GGN",
    "EKFAC": "GGN",
    "Hessian's diagonal": "Hessian",
    "GGN's diagonal": "GGN",
    "EF's diagonal": "empirical Fisher",
}


def show(ax: Axes, A: Tensor, scale: float, title: str, note: str, rows: bool) -> None:
    """A matrix in colours: red above zero, blue below, both logarithmic away from it."""
    norm = SymLogNorm(linthresh=scale / 100, vmin=-scale, vmax=scale)
    ax.imshow(A.numpy(), cmap="RdBu_r", norm=norm, interpolation="nearest", aspect="auto")
    edges = torch.tensor(list(LAYERS.values())).cumsum(0)
    middles = edges - torch.tensor(list(LAYERS.values())) / 2 - 0.5
    for edge in edges[:-1]:
        ax.axvline(edge - 0.5, color="0.6", lw=0.6)
        if rows:
            ax.axhline(edge - 0.5, color="0.6", lw=0.6)
    ax.set_xticks(middles, LAYERS)
    ax.set_yticks(middles, LAYERS) if rows else ax.set_yticks([])
    ax.tick_params(length=0, labelsize=8)
    ax.set_title(title, loc="left", fontsize=10, weight="bold", pad=4)
    ax.set_xlabel(note, fontsize=8, color="0.35", loc="left")


def draw(dense: dict[str, Tensor], J: Tensor, notes: dict[str, str]) -> None:
    plt.rcParams.update({"font.size": 9})
    fig, axes = plt.subplots(
        4, 4, figsize=(10.5, 11.5), dpi=110, layout="constrained", height_ratios=[1] * 4
    )
    scale = float(dense["Hessian"].abs().max())
    cells = iter(axes.flat)
    for name, A in dense.items():
        show(next(cells), A, scale, name, notes.get(name, ""), rows=True)

    inverse = torch.linalg.inv(dense["damped GGN"])
    show(next(cells), inverse, float(inverse.abs().max()), "its inverse", "", rows=True)
    note = "3 rows for each flower; 15 flowers"
    some = J.unflatten(0, (-1, 3))[::10].flatten(0, 1)
    show(next(cells), some, float(J.abs().max()), "Jacobian", note, rows=False)

    ax = next(cells)
    for name, style in {"Hessian": "-", "GGN": "--", "KFAC": ":"}.items():
        values = torch.linalg.eigvalsh(dense[name]).flip(0)
        ax.plot(range(1, len(values) + 1), values, style, label=name, lw=1.6)
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_yticks([-1e-2, 0, 1e-2, 1])
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_title("eigenvalues", loc="left", fontsize=10, weight="bold", pad=4)
    ax.set_xlabel("rank", fontsize=8, color="0.35", loc="left")
    ax.tick_params(labelsize=8)
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)

    for ax in cells:
        ax.axis("off")
        ax.text(
            0,
            0.9,
            "red: positive\nblue: negative\nwhite: zero\n\nAll have the colours of\n"
            "the Hessian, but for the\ninverse and the Jacobian.",
            transform=ax.transAxes,
            va="top",
            color="0.35",
        )
    FIGURE.parent.mkdir(exist_ok=True)
    fig.savefig(FIGURE)
    plt.close(fig)


def main() -> None:
    """Train, build, compare, draw."""
    torch.set_num_threads(1)
    model, X, y = trained()
    params = dict(model.named_parameters())
    dense = {name: A.to_dense() for name, A in matrices(model, X, y).items()}
    J = JacobianLinearOperator(model, params, [(X, y)]).to_dense()

    print(f"{'matrix':<20}{'rank':>5}{'smallest':>12}{'largest':>10}   distance")
    notes = {}
    for name, A in dense.items():
        values = torch.linalg.eigvalsh(A)
        rank = int((values.abs() > 1e-10 * values.abs().max()).sum())
        line = f"{name:<20}{rank:>5}{values[0]:>12.1e}{values[-1]:>10.3f}"
        if name in APPROXIMATES:
            truth = dense[APPROXIMATES[name]]
            gap = float((A - truth).norm() / truth.norm())
            notes[name] = f"{gap:.0%} from the {APPROXIMATES[name]}"
            line += f"   {notes[name]}"
        print(line)
    draw(dense, J, notes)
    print(f"\nFigure: {FIGURE}")


if __name__ == "__main__":
    main()
