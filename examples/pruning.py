"""What pruning and quantisation cost, before anything is pruned or quantised.

What it shows, on 1,797 handwritten digits and a network of 1,210 parameters: the change of
the loss along δ is gᵀδ + ½ δᵀHδ to second order, and one product with the Hessian does for
many δ at once. Compared with the true change of the loss, a forward pass over the data for
each δ:

1. all 1,184 weights, pruned one by one;
2. the weakest weights together, by magnitude and by prediction (optimal brain damage);
3. each layer and all of them rounded to 2 to 8 bits.

The terms ½ δᵀHδ are checked against a dense Hessian made without the library. The figure
goes to ``examples/output/pruning.png``. Run it with ``python examples/pruning.py`` where
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

from curvop import HessianLinearOperator

FIGURE = Path(__file__).parent / "output" / "pruning.png"
BITS = range(2, 9)
SHARES = torch.arange(1, 16) * 0.05  # of the weights that are pruned
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's colours


def load_data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.from_numpy(digits.data / 16.0), torch.from_numpy(digits.target)


def train(X: Tensor, y: Tensor) -> nn.Sequential:
    """64 -> 16 -> 10, by L-BFGS with weight decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        squares = sum(p.square().sum() for p in model.parameters())
        loss = nn.functional.cross_entropy(model(X), y) + 1e-3 * squares
        loss.backward()
        return loss

    optimizer.step(objective)
    optimizer.zero_grad(set_to_none=True)
    return model


# ------------------------------------------------------------------ steps, [P, K]


def one_by_one(theta: Tensor, is_weight: Tensor) -> Tensor:
    """Each weight alone becomes zero."""
    return -torch.diag(theta)[:, is_weight]


def weakest(theta: Tensor, score: Tensor, is_weight: Tensor) -> Tensor:
    """The weights of lowest score become zero, a step for each share."""
    order = torch.where(is_weight, score, torch.inf).argsort()
    steps = torch.zeros(len(theta), len(SHARES), dtype=theta.dtype)
    for k, share in enumerate(SHARES):
        pruned = order[: int(share * is_weight.sum())]
        steps[pruned, k] = -theta[pruned]
    return steps


def rounded(params: list[Tensor], bits: int, layers: tuple[int, ...]) -> Tensor:
    """The weights of some layers become the nearest of ``2 ** bits`` levels."""
    step = []
    for i, p in enumerate(params):
        width = 2 * p.abs().max() / (2**bits - 1)
        q = ((p / width - 0.5).round() + 0.5) * width
        chosen = i // 2 in layers and p.ndim == 2
        step.append((q - p if chosen else torch.zeros_like(p)).flatten())
    return torch.cat(step).detach()


# -------------------------------------------------------------- predicted and true


def predicted(H: HessianLinearOperator, g: Tensor, D: Tensor) -> Tensor:
    """``gᵀδ + ½ δᵀHδ`` for all columns ``δ`` at once."""
    return D.T @ g + (D * (H @ D)).sum(0) / 2


def true_changes(model: nn.Module, X: Tensor, y: Tensor, D: Tensor) -> Tensor:
    """A forward pass over the data for each column."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss(step: Tensor) -> Tensor:
        parts = step.split(sizes)
        moved = {
            k: p + s.view_as(p) for (k, p), s in zip(named.items(), parts, strict=True)
        }
        return nn.functional.cross_entropy(torch.func.functional_call(model, moved, X), y)

    with torch.no_grad():
        before = loss(torch.zeros_like(D[:, 0]))
        return torch.stack([loss(step) for step in D.T]) - before


def dense_hessian(model: nn.Module, X: Tensor, y: Tensor) -> Tensor:
    """Row by row, by differentiating twice."""
    params = list(model.parameters())
    loss = nn.functional.cross_entropy(model(X), y)
    g = torch.cat(
        [t.flatten() for t in torch.autograd.grad(loss, params, create_graph=True)]
    )
    rows = [torch.autograd.grad(entry, params, retain_graph=True) for entry in g]
    return torch.stack([torch.cat([t.flatten() for t in row]) for row in rows])


def draw(
    alone: tuple[Tensor, Tensor], together: dict[str, tuple[Tensor, Tensor]], bits: Tensor
) -> None:
    """Predictions against the truth."""
    plt.rcParams.update({"font.size": 9, "figure.dpi": 150})
    fig, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11.5, 3.6), layout="constrained"
    )
    guess, truth = alone
    ends = [float(truth.min()), float(truth.max())]
    left.plot(ends, ends, color="0.7", lw=0.8, zorder=0)
    left.plot(guess, truth, "o", color=BLUE, ms=3, mfc="none", mew=0.6)
    left.set_xlabel("predicted change of the loss")
    left.set_ylabel("true change")
    left.set_title(f"{len(truth):,} weights pruned one by one", loc="left")
    styles = {"by magnitude": (ORANGE, "s"), "by prediction": (GREEN, "^")}
    for name, (guess, truth) in together.items():
        color, marker = styles[name]
        middle.semilogy(
            100 * SHARES, truth.abs(), color=color, marker=marker, ms=4, label=name
        )
        middle.semilogy(100 * SHARES, guess.abs(), color=color, ls=":", lw=1.2)
    middle.plot([], [], color="0.4", ls=":", lw=1.2, label="predicted")
    middle.set_ylabel("change of the loss, absolute")
    middle.set_xlabel("weights that are pruned, %")
    middle.set_title("The weakest pruned together", loc="left")
    middle.legend(frameon=False)
    names = ("first layer", "second layer", "both")
    for name, color, marker, row in zip(
        names, (BLUE, ORANGE, GREEN), "os^", bits, strict=True
    ):
        right.semilogy(BITS, row[1].abs(), color=color, marker=marker, ms=4, label=name)
        right.semilogy(BITS, row[0].abs(), color=color, ls=":", lw=1.2)
    right.plot([], [], color="0.4", ls=":", lw=1.2, label="predicted")
    right.set_xlabel("bits")
    right.set_title("Weights rounded", loc="left")
    right.legend(frameon=False)
    for ax in (left, middle, right):
        ax.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    fig.savefig(FIGURE)
    plt.close(fig)


def main() -> None:
    """Train, predict, compare, draw."""
    begin = time.perf_counter()
    torch.set_num_threads(1)  # the products are tiny: threads would wait for each other
    X, y = load_data()
    model = train(X, y)
    params = list(model.parameters())
    theta = torch.cat([p.detach().flatten() for p in params])
    is_weight = torch.cat(
        [torch.full_like(p, p.ndim == 2).flatten() for p in params]
    ).bool()
    loss = nn.functional.cross_entropy(model(X), y)
    g = torch.cat([t.flatten() for t in torch.autograd.grad(loss, params)])
    print(f"{len(theta):,} parameters, loss {loss.item():.4f}\n")
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(X, y)]).linearize()

    single = one_by_one(theta, is_weight)
    start = time.perf_counter()
    HD = H @ single
    quadratic = (single * HD).sum(0) / 2
    seconds = time.perf_counter() - start
    dense = dense_hessian(model, X, y)
    expected = (single * (dense @ single)).sum(0) / 2
    error = (quadratic - expected).norm() / expected.norm()
    print(
        f"1. ½ δᵀHδ for {single.shape[1]:,} δ in {seconds:.1f} s; against a dense Hessian:"
    )
    print(f"   relative error {error:.0e}")
    alone = (single.T @ g + quadratic, true_changes(model, X, y, single))
    both = torch.stack(alone)
    print(f"   correlation with the true change {torch.corrcoef(both)[0, 1]:.4f}\n")

    saliency = torch.zeros_like(theta).masked_scatter(is_weight, alone[0])
    steps = {
        "by magnitude": weakest(theta, theta.abs(), is_weight),
        "by prediction": weakest(theta, saliency, is_weight),
    }
    together = {
        name: (predicted(H, g, D), true_changes(model, X, y, D))
        for name, D in steps.items()
    }
    print("2. Change of the loss, predicted and true, when so many weights are pruned:")
    for name, (guess, truth) in together.items():
        cells = (
            f"{p:>9.4f} {t:.4f}" for p, t in zip(guess[3:12:4], truth[3:12:4], strict=True)
        )
        print(f"   {name:<14}" + "".join(cells))
    print("                 " + "".join(f"{100 * s:>9.0f} %     " for s in SHARES[3:12:4]))

    tensors = [p.detach() for p in params]
    chosen = ((0,), (1,), (0, 1))
    D = torch.stack([rounded(tensors, b, layers) for layers in chosen for b in BITS], 1)
    bits = torch.stack([predicted(H, g, D), true_changes(model, X, y, D)])
    bits = bits.view(2, len(chosen), len(BITS)).movedim(0, 1)
    print("\n3. Change of the loss when weights are rounded, predicted and true:")
    print(
        "   bits                first layer           second layer                   both"
    )
    for k, b in enumerate(BITS):
        cells = (f"{guess:>12.2e} {truth:.2e}" for guess, truth in bits[:, :, k])
        print(f"   {b:<5}" + "".join(cells))
    draw(alone, together, bits)
    print(f"\nFigure: {FIGURE}\nDone in {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
