"""Which training images help or harm which test images: influence functions.

What it shows, on 300 handwritten digits and a network of 610 parameters, with
L(θ) = (1/N) Σ ℓ_n(θ) + ½ λ ‖θ‖² at its minimum:

1. the scores −g_testᵀ (H + λI)⁻¹ g_train of all 30,000 pairs of 100 test and 300 training
   images: one block of 100 systems, solved together by MINRES, and one product with the
   gradients of all training images;
2. the same against a dense Hessian made without the library;
3. what they predict against the truth: images are left out, and the network is trained
   again. Large changes are underestimated, as by any first-order estimate.

The figure goes to ``examples/output/influence.png``. Run it with ``python
examples/influence.py`` where curvop is installed with its ``examples`` extra.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from curvop import EFLinearOperator, HessianLinearOperator, LinearOperator, minres

FIGURE = Path(__file__).parent / "output" / "influence.png"
NUM_TRAIN, NUM_TEST, NUM_LEFT_OUT = 300, 100, 24
DECAY = 1e-2  # λ
BLUE = "#0072B2"


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images with their labels."""
    digits = load_digits()
    X, y = torch.from_numpy(digits.data / 16.0), torch.from_numpy(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:NUM_TRAIN], order[-NUM_TEST:]
    return X[train], y[train], X[test], y[test]


def train(model: nn.Module, X: Tensor, y: Tensor) -> nn.Module:
    """To the minimum, where gradients are zero: influence functions start from there.

    The sum of losses is divided by the number of *all* training images, those that were
    left out included.
    """
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        squares = sum(p.square().sum() for p in model.parameters())
        misfit = cross_entropy(model(X), y, reduction="sum") / NUM_TRAIN
        loss = misfit + DECAY * squares / 2
        loss.backward()
        return loss

    optimizer.step(objective)
    optimizer.zero_grad(set_to_none=True)
    return model


def losses(model: nn.Module, X: Tensor, y: Tensor) -> Tensor:
    """Of each image."""
    with torch.no_grad():
        return cross_entropy(model(X), y, reduction="none")


def gradients(model: nn.Module, X: Tensor, y: Tensor) -> LinearOperator:
    """``[P, N]`` as an operator, a gradient for each image: ``V √N`` of the Fisher."""
    params = list(model.parameters())
    E = EFLinearOperator(model, nn.CrossEntropyLoss(), params, [(X, y)])
    return E.factor().V * len(y) ** 0.5


def dense_scores(model: nn.Module, data: tuple[Tensor, ...]) -> Tensor:
    """The same by a dense Hessian, row by row, and gradients one by one."""
    X, y, X_test, y_test = data
    params = list(model.parameters())

    def flat(f: Tensor, keep: bool = False) -> Tensor:
        grads = torch.autograd.grad(f, params, create_graph=keep, retain_graph=True)
        return torch.cat([g.flatten() for g in grads])

    slope = flat(cross_entropy(model(X), y), keep=True)
    H = torch.stack([flat(g) for g in slope])
    H.diagonal().add_(DECAY)
    here, there = (
        torch.stack([flat(loss) for loss in cross_entropy(model(A), b, reduction="none")])
        for A, b in ((X, y), (X_test, y_test))
    )
    return -there @ torch.linalg.solve(H, here.T)


def draw(data: tuple[Tensor, ...], scores: Tensor, left_out: Tensor, truth: Tensor) -> None:
    """Prediction against truth, and the images that matter most to one test image."""
    X, y, X_test, y_test = data
    plt.rcParams.update({"font.size": 9, "figure.dpi": 150})
    fig = plt.figure(figsize=(9.5, 3.9), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=[1, 1.1])
    ax = left.subplots()
    predicted = -scores[:, left_out].sum(0) / NUM_TRAIN
    ends = [float(truth.min()), float(truth.max())]
    ax.plot(ends, ends, color="0.7", lw=0.8, zorder=0)
    ax.plot(predicted, truth, "o", color=BLUE, ms=5, mfc="none")
    ax.set_xlabel("predicted change of the test loss")
    ax.set_ylabel("change after training again")
    ax.set_title(f"{len(left_out)} training images left out, one by one", loc="left")
    ax.spines[["top", "right"]].set_visible(False)

    hardest = int(scores.abs().sum(1).argmax())
    order = scores[hardest].argsort()
    axes = right.subplots(2, 6)
    right.suptitle(
        f"A test image of a {y_test[hardest]}, and what helps and harms its loss most",
        x=0.02,
        ha="left",
    )
    for row, (chosen, name) in zip(
        axes, ((order[:5], "helps"), (order.flip(0)[:5], "harms")), strict=True
    ):
        images = [X_test[hardest], *X[chosen]]
        titles = ["", *(f"{y[i]}: {scores[hardest, i]:+.2f}" for i in chosen)]
        for image, title, ax in zip(images, titles, row, strict=True):
            ax.imshow(image.view(8, 8).numpy(), cmap="gray_r")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(title, fontsize=8)
        row[0].set_ylabel(name)
        row[0].spines[:].set_color(BLUE)
    FIGURE.parent.mkdir(exist_ok=True)
    fig.savefig(FIGURE)
    plt.close(fig)


def main() -> None:
    """Train, score, check, train again, draw."""
    begin = time.perf_counter()
    torch.set_num_threads(1)  # the products are tiny: threads would wait for each other
    data = load_data()
    X, y, X_test, y_test = data
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
    train(model, X, y)
    params = list(model.parameters())
    accuracy = float((model(X_test).argmax(1) == y_test).double().mean())
    print(f"{sum(p.numel() for p in params)} parameters, test accuracy {accuracy:.0%}\n")

    start = time.perf_counter()
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(X, y)])
    here, there = gradients(model, X, y), gradients(model, X_test, y_test)
    B = there @ torch.eye(NUM_TEST, dtype=torch.float64)  # [P, 100]
    solution = minres(H.linearize(), B, shift=-DECAY, rtol=1e-9)
    scores = -(here.T @ solution.x).T  # [100, 300]
    seconds = time.perf_counter() - start
    print(f"1. {scores.numel():,} scores in {seconds:.1f} s: {solution.status},", end=" ")
    print(f"{solution.iterations} iterations for {NUM_TEST} systems together")

    expected = dense_scores(model, data)
    error = (scores - expected).norm() / expected.norm()
    print(f"2. Against a dense Hessian: relative error {error:.0e}")

    # the most influential images, and others
    order = scores.sum(0).abs().argsort(descending=True)
    half = NUM_LEFT_OUT // 2
    others = order[half :: (NUM_TRAIN - half) // half][:half]
    left_out = torch.cat([order[:half], others])
    before = losses(model, X_test, y_test).sum()
    changes = []
    for i in tqdm(left_out.tolist(), desc="training again", unit=" times"):
        rest = torch.arange(NUM_TRAIN) != i
        again = train(copy.deepcopy(model), X[rest], y[rest])
        changes.append(losses(again, X_test, y_test).sum() - before)
    truth = torch.stack(changes)
    predicted = -scores[:, left_out].sum(0) / NUM_TRAIN
    correlation = torch.corrcoef(torch.stack([predicted, truth]))[0, 1]
    print(f"3. Summed test loss after leaving out each of {len(left_out)} images:")
    print(f"   correlation of prediction and truth {correlation:.4f}\n")
    print("   image  label   predicted       truth")
    for i in range(0, len(left_out), 3):
        n = int(left_out[i])
        print(f"   {n:>5}  {y[n]:>5}  {predicted[i]:>+10.4f}  {truth[i]:>+10.4f}")
    draw(data, scores, left_out, truth)
    print(f"\nFigure: {FIGURE}\nDone in {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
