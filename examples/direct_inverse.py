"""Newton systems of deep, narrow networks, solved directly.

What it shows, on a few images of handwritten digits and one network of 24 layers:

1. the exact solution of ``(H + εI) x = b``, with the residual measured by products that
   share nothing with the inverse, next to MINRES;
2. the inertia against the damping, the smallest eigenvalue that it brackets, and the
   damping from which on ``H + εI`` is positive definite, as a trust region needs it;
3. the log-determinant of the damped Gauss-Newton matrix;
4. time against depth for the direct inverse, the dense matrix and MINRES.

The figure goes to ``examples/output/direct_inverse.png``. Run it with
``python examples/direct_inverse.py`` where curvop is installed with its ``examples`` extra.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from curvop import ChainHessianLinearOperator, HessianLinearOperator, minres

FIGURE = Path(__file__).parent / "output" / "direct_inverse.png"
NUM_DATA, WIDTH, DAMPING = 4, 12, 1e-2
DEPTHS = {"direct": [4, 8, 16, 32, 64, 128, 256], "dense": [4, 8, 16], "MINRES": [4, 8, 16]}
MAXITER = 500  # of MINRES
# Okabe and Ito's colours with a marker each, told apart without colour too
STYLES = {
    "direct": {"color": "#0072B2", "marker": "o", "ls": "-"},
    "dense": {"color": "#D55E00", "marker": "s", "ls": "--"},
    "MINRES": {"color": "#009E73", "marker": "^", "ls": ":"},
}


def chain(depth: int) -> nn.Sequential:
    """64 pixels, ``depth`` layers of 12 units, 10 classes; in double precision."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(64, WIDTH), nn.Tanh()]
    for _ in range(depth - 2):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10)).double()


def load_data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    X = torch.from_numpy(digits.data / 16.0)
    return X[:NUM_DATA], torch.from_numpy(digits.target)[:NUM_DATA]


def report_solution(model: nn.Sequential, X: Tensor, y: Tensor) -> None:
    """The same system by the direct inverse and by MINRES."""
    loss_func = nn.CrossEntropyLoss()
    params = list(model.parameters())
    H = HessianLinearOperator(model, loss_func, params, [(X, y)])
    b = torch.randn(H.shape[1], dtype=H.dtype)
    print(f"{H.shape[0]:,} parameters, {len(y)} images, damping {DAMPING}\n")

    begin = time.perf_counter()
    A = ChainHessianLinearOperator(model, loss_func, X, y)
    inverse = A.inverse(DAMPING)
    x = inverse @ b
    seconds = time.perf_counter() - begin
    gap = (H @ x + DAMPING * x - b).norm() / b.norm()
    print(f"direct   relative residual {gap:.0e} in {1e3 * seconds:,.0f} ms")

    begin = time.perf_counter()
    solution = minres(A, b, shift=-DAMPING, rtol=1e-10, maxiter=MAXITER)
    seconds = time.perf_counter() - begin
    gap = (H @ solution.x + DAMPING * solution.x - b).norm() / b.norm()
    print(
        f"MINRES   relative residual {gap:.0e} in {1e3 * seconds:,.0f} ms "
        f"({solution.iterations} iterations: {solution.status})"
    )
    print(f"the factors take {inverse.nbytes() / 1e6:.1f} MB")


def report_inertia(model: nn.Sequential, X: Tensor, y: Tensor) -> None:
    """How many eigenvalues are below what; no Krylov method could be sure of it."""
    H = ChainHessianLinearOperator(model, nn.CrossEntropyLoss(), X, y)
    lowest = H.smallest_eigenvalue()
    print(f"\nsmallest eigenvalue of the Hessian: {lowest:.8f}\n")
    print("damping     negative eigenvalues of H + damping I")
    for damping in (1e-6, 1e-4, 1e-3, -0.999 * lowest, -1.001 * lowest):
        print(f"{damping:<12.6f}{H.inverse(damping).num_negative()}")
    G = ChainHessianLinearOperator(model, nn.CrossEntropyLoss(), X, y, curvature="ggn")
    logdet = G.inverse(DAMPING).logabsdet()
    print(f"\nlog det of the damped Gauss-Newton matrix: {logdet:.6f}")


def direct(model: nn.Sequential, X: Tensor, y: Tensor) -> None:
    A = ChainHessianLinearOperator(model, nn.CrossEntropyLoss(), X, y)
    A.inverse(DAMPING) @ torch.ones(A.shape[1], dtype=A.dtype)


def dense(model: nn.Sequential, X: Tensor, y: Tensor) -> None:
    params = list(model.parameters())
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(X, y)]).to_dense()
    H.diagonal().add_(DAMPING)
    torch.linalg.solve(H, torch.ones(len(H), dtype=H.dtype))


def iterative(model: nn.Sequential, X: Tensor, y: Tensor) -> None:
    A = ChainHessianLinearOperator(model, nn.CrossEntropyLoss(), X, y)
    b = torch.ones(A.shape[1], dtype=A.dtype)
    minres(A, b, shift=-DAMPING, rtol=1e-10, maxiter=MAXITER)


def seconds(run: Callable[[], None]) -> float:
    """CPU time, the better of two runs."""
    times = []
    for _ in range(2):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times)


def time_against_depth(X: Tensor, y: Tensor) -> dict[str, list[float]]:
    solvers = {"direct": direct, "dense": dense, "MINRES": iterative}
    times = {}
    for name, solve in solvers.items():
        bar = tqdm(DEPTHS[name], desc=f"{name:<8}", unit=" depths")
        times[name] = [seconds(lambda d=d, f=solve: f(chain(d), X, y)) for d in bar]
    return times


def draw(times: dict[str, list[float]]) -> None:
    plt.rcParams.update({"font.size": 9, "figure.dpi": 150})
    fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for name, values in times.items():
        ax.loglog(DEPTHS[name], values, **STYLES[name])
        note = name if name != "MINRES" else f"MINRES, {MAXITER} iterations"
        ax.annotate(
            note,
            (DEPTHS[name][-1], values[-1]),
            (6, 0),
            textcoords="offset points",
            color=STYLES[name]["color"],
            va="center",
        )
    slope = [times["direct"][-1] * d / DEPTHS["direct"][-1] for d in DEPTHS["direct"]]
    ax.loglog(DEPTHS["direct"], slope, color="0.7", lw=0.8, zorder=0)
    ax.annotate(
        "proportional to depth",
        (DEPTHS["direct"][1], slope[1]),
        (0, -12),
        textcoords="offset points",
        color="0.4",
    )
    ax.set_xticks(DEPTHS["direct"], [str(d) for d in DEPTHS["direct"]])
    ax.minorticks_off()
    ax.set_xlim(3.5, 420)
    ax.set_xlabel("linear layers")
    ax.set_ylabel("seconds for one system")
    ax.set_title(f"A damped Newton system, {NUM_DATA} images, width {WIDTH}", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    FIGURE.parent.mkdir(exist_ok=True)
    fig.savefig(FIGURE)
    plt.close(fig)


def main() -> None:
    """Solve, count, time, draw."""
    begin = time.perf_counter()
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    X, y = load_data()
    model = chain(24)
    report_solution(model, X, y)
    report_inertia(model, X, y)
    print()
    draw(time_against_depth(X, y))
    print(f"\nFigure: {FIGURE}\nDone in {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
