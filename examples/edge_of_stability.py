"""Progressive sharpening and the edge of stability, on 1,797 images of handwritten digits.

What it shows: full-batch gradient descent with the learning rate η increases the largest
eigenvalue of the Hessian until it reaches 2/η, and then hovers there (Cohen, Kaur, Li,
Kolter, Talwalkar, "Gradient descent on neural networks typically occurs at the edge of
stability", 2021). On a quadratic it would diverge beyond that line; here the loss goes on
decreasing, though no longer at every step.

`curvop.CurvatureMonitor` follows the two largest eigenvalues through the training, for
two learning rates. The figure goes to ``examples/output/edge_of_stability.png``, the
history to CSV files next to it. Run it with ``python examples/edge_of_stability.py`` where
curvop is installed with its ``examples`` extra.
"""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import curvop
from curvop.monitoring import CSVLog, CurvatureRecord

OUTPUT = Path(__file__).parent / "output"
LEARNING_RATES = (1.5, 2.5)
STEPS, EVERY = 1200, 30

History = tuple[CurvatureRecord, ...]


def load_data() -> tuple[Tensor, Tensor]:
    """Images, standardised together, and classes as unit vectors."""
    digits = load_digits()
    X = torch.from_numpy(digits.data).float()
    X = X - X.mean(0)
    return X / X.std(), torch.eye(10)[torch.from_numpy(digits.target)]


def train(learning_rate: float, X: Tensor, y: Tensor) -> History:
    """Plain gradient descent on the squared error, watched."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    loss_func, params = nn.MSELoss(), list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=learning_rate)
    file = OUTPUT / f"edge_of_stability_{learning_rate:g}.csv"
    file.unlink(missing_ok=True)
    monitor = curvop.CurvatureMonitor(
        model,
        loss_func,
        params,
        [(X, y)],
        k=2,
        optimizer=optimizer,
        every=EVERY,
        logs=[CSVLog(file)],
    )
    bar = tqdm(range(STEPS), desc=f"learning rate {learning_rate:g}", unit=" steps")
    for _ in bar:
        optimizer.zero_grad()
        loss = loss_func(model(X), y)
        loss.backward()
        optimizer.step()
        record = monitor.step()
        if record is not None:
            bar.set_postfix(loss=f"{record.loss:.4f}", sharpness=f"{record.sharpness:.2f}")
    return monitor.history


def report(histories: dict[float, History]) -> None:
    """Print the sharpness in units of 2/η."""
    for eta, history in histories.items():
        print(f"\nLearning rate {eta:g}: the stability threshold 2/η is {2 / eta:.3g}\n")
        print("   step     loss   sharpness (residual)   of 2/η           trace   products")
        for r in history[:: len(history) // 10]:
            print(
                f"   {r.step:>4} {r.loss:>8.4f} {r.sharpness:>11.3f} "
                f"({r.residuals[0]:.0e}) {r.sharpness * eta / 2:>11.0%} "
                f"{r.trace:>9.2f} ± {r.trace_error:<4.1g} {r.num_matvecs:>7}"
            )
        late = [r.sharpness * eta / 2 for r in history[len(history) // 2 :]]
        print(f"   In the second half between {min(late):.0%} and {max(late):.0%} of 2/η.")


def draw(histories: dict[float, History], path: Path) -> None:
    """Sharpness on top, the loss below, a column for each learning rate."""
    fig, axes = plt.subplots(
        2, 2, figsize=(10, 6.4), dpi=150, sharex=True, sharey="row",
        height_ratios=[3, 2], layout="constrained",
    )  # fmt: skip
    for (eta, history), (top, bottom) in zip(histories.items(), axes.T, strict=True):
        curvop.plot.monitor(history, ax=top)
        top.set_title(f"learning rate η = {eta:g}: 2/η = {2 / eta:.3g}")
        top.set_xlabel("")
        top.legend(loc="lower right")
        bottom.semilogy([r.step for r in history], [r.loss for r in history], "o-", ms=3)
        bottom.set_xlabel("step of gradient descent")
    axes[0, 1].set_ylabel("")
    axes[1, 0].set_ylabel("loss (mean squared error)")
    top.set_ylim(top=1.25 * max(r.threshold for h in histories.values() for r in h))
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle("The sharpness rises to 2/η and hovers there", weight="bold")
    fig.savefig(path)
    plt.close(fig)


def main() -> None:
    """Train twice, print, draw."""
    begin = time.perf_counter()
    torch.set_num_threads(1)  # the products are tiny: threads would wait for each other
    OUTPUT.mkdir(exist_ok=True)
    X, y = load_data()
    histories = {eta: train(eta, X, y) for eta in LEARNING_RATES}
    report(histories)
    path = OUTPUT / "edge_of_stability.png"
    draw(histories, path)
    print(f"\nFigure: {path}\nDone in {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
