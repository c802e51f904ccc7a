"""Laplace's approximation of a neural network, exact, without a matrix of its parameters.

What it shows, on a regression with a gap in its data and a network of 2,701 parameters:

1. the evidence for the prior's precision λ, from log determinants of G + λI;
2. the predictive variance J (G + λI)⁻¹ Jᵀ at 300 inputs from Gram matrices alone: no
   matrix of inputs × parameters is formed;
3. samples of the network's parameters from N(θ, (G + λI)⁻¹), and the functions they give;
4. each of these against dense matrices made without the library.

The figure goes to ``examples/output/laplace.png``. Run it with ``python
examples/laplace.py`` where curvop is installed with its ``examples`` extra.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from curvop import GGNLinearOperator
from curvop.lowrank import GramFactor

FIGURE = Path(__file__).parent / "output" / "laplace.png"
NOISE = 0.15  # standard deviation of the targets
NUM_DATA, NUM_SAMPLES, SEED = 60, 2000, 0
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's colours

Loss = Callable[[Tensor, Tensor], Tensor]


def negative_log_likelihood(f: Tensor, y: Tensor) -> Tensor:
    """Gaussian noise, without the constant."""
    return (f - y).square().sum() / (2 * NOISE**2)


def half_square(f: Tensor, y: Tensor) -> Tensor:
    """The Gauss-Newton matrix of ½‖f‖² is JᵀJ: its factor is Jᵀ."""
    return f.square().sum() / 2


def load_data() -> tuple[Tensor, Tensor]:
    """A sine with noise, seen on two intervals."""
    draw = torch.Generator().manual_seed(SEED)
    X = torch.rand(NUM_DATA, 1, generator=draw, dtype=torch.float64) * 2
    X = torch.where(X < 1, X - 2, X)  # [-2, -1] and [1, 2]
    e = torch.randn(NUM_DATA, 1, generator=draw, dtype=torch.float64)
    return X, (2.5 * X).sin() + NOISE * e


def train(X: Tensor, y: Tensor) -> nn.Sequential:
    """1 -> 50 -> 50 -> 1 by L-BFGS, with a little weight decay."""
    torch.manual_seed(SEED)
    model = nn.Sequential(
        nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1)
    ).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        squares = sum(p.square().sum() for p in model.parameters())
        loss = negative_log_likelihood(model(X), y) + squares / 2
        loss.backward()
        return loss

    optimizer.step(objective)
    optimizer.zero_grad(set_to_none=True)
    return model


def factor(model: nn.Module, loss: Loss, X: Tensor, y: Tensor) -> GramFactor:
    """The Gauss-Newton matrix of all data in factor form."""
    params = list(model.parameters())
    return GGNLinearOperator(model, loss, params, [(X, y)], reduction="sum").factor()


# ----------------------------------------------------------------- with curvop


def evidence(G: GramFactor, damping: float, theta: Tensor, misfit: float) -> float:
    """``log p(data | λ)`` up to a constant, by Laplace's approximation."""
    prior = damping * float(theta @ theta) / 2 - len(theta) * math.log(damping) / 2
    return -(misfit + prior + G.logdet(damping) / 2)


def variances(G: GramFactor, J: GramFactor, damping: float) -> Tensor:
    """``diag(J (VVᵀ + λ)⁻¹ Jᵀ)`` for ``J.V = Jᵀ``, by the identity of Woodbury.

    ``(JJᵀ - JV (VᵀV + λ)⁻¹ VᵀJᵀ) / λ``: all three products are Gram matrices.
    """
    K, cross = G.gram(), G.gram(J)
    K.diagonal().add_(damping)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(K), cross, upper=False)
    return (J.gram().diagonal() - half.square().sum(0)) / damping


def functions(J: GramFactor, samples: Tensor) -> Tensor:
    """What the linearised network predicts with sampled parameters, ``[B, K]``."""
    return J.V.T @ samples


# --------------------------------------------------------------- without curvop


def dense_jacobian(model: nn.Module, X: Tensor) -> Tensor:
    """Row by row, by backward passes."""
    rows = []
    for f in model(X).flatten():
        gradient = torch.autograd.grad(f, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows)


def report(name: str, got: Tensor | float, expected: Tensor | float) -> None:
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    error = float((got - expected).norm() / expected.norm())
    print(f"   {name:<44} relative error {error:.0e}")


def draw(
    X: Tensor, y: Tensor, grid: Tensor, f: Tensor, sd: Tensor, some: Tensor, curve: Tensor
) -> None:
    """Predictions with their band, and the evidence."""
    plt.rcParams.update({"font.size": 9, "figure.dpi": 150})
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 3.8), width_ratios=[2, 1], layout="constrained"
    )
    x = grid[:, 0]
    left.fill_between(x, f - 2 * sd, f + 2 * sd, color=BLUE, alpha=0.18, lw=0)
    for i, sample in enumerate(some.T):
        label = "samples" if i == 0 else None
        left.plot(x, f + sample, color=GREEN, lw=0.8, ls="--", label=label)
    left.plot(x, f, color=BLUE, lw=2, label="prediction ± 2 standard deviations")
    left.plot(X[:, 0], y[:, 0], "o", color="0.2", ms=3, label=f"{len(X)} data")
    left.set_ylim(-5, 6.5)
    left.set_xlabel("input")
    left.set_ylabel("target")
    left.set_title("Wide where there are no data", loc="left")
    left.legend(frameon=False, loc="upper center", ncols=3)
    dampings, values = curve.T
    best = values.argmax()
    right.semilogx(dampings, values, color=ORANGE, marker="s", ms=3)
    right.plot(dampings[best], values[best], "o", ms=11, mfc="none", color="0.2")
    right.annotate(
        f"λ = {dampings[best]:.2g}",
        (float(dampings[best]), float(values[best])),
        (0, -20),
        textcoords="offset points",
        ha="center",
    )
    right.set_xlabel("precision λ of the prior")
    right.set_title("Log evidence, up to a constant", loc="left")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    fig.savefig(FIGURE)
    plt.close(fig)


def main() -> None:
    """Train, approximate, check, draw."""
    begin = time.perf_counter()
    torch.set_num_threads(1)  # the products are tiny: threads would wait for each other
    X, y = load_data()
    model = train(X, y)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    with torch.no_grad():
        misfit = float(negative_log_likelihood(model(X), y))
    print(f"{len(theta):,} parameters, {len(X)} data\n")

    G = factor(model, negative_log_likelihood, X, y)
    dampings = torch.logspace(-3, 1.5, 28, dtype=torch.float64)
    curve = torch.stack(
        [dampings, torch.tensor([evidence(G, float(d), theta, misfit) for d in dampings])],
        1,
    )
    damping = float(dampings[curve[:, 1].argmax()])
    print(f"1. The evidence is largest for the precision λ = {damping:.2g}.")

    grid = torch.linspace(-2.8, 2.8, 300, dtype=torch.float64)[:, None]
    J = factor(model, half_square, grid, grid)
    variance = variances(G, J, damping)
    sd = variance.sqrt()
    print("2. Standard deviations of the function at 300 inputs:")
    print("   input           " + "".join(f"{x:>8.1f}" for x in grid[::60, 0].tolist()))
    print("   deviation       " + "".join(f"{s:>8.3f}" for s in sd[::60].tolist()))

    posterior = G.inverse(damping)
    generator = torch.Generator().manual_seed(SEED)
    samples = posterior.sample(NUM_SAMPLES, generator=generator)
    moved = functions(J, samples)
    ratio = moved.square().mean(1) / variance
    print(f"3. {NUM_SAMPLES:,} samples of the {len(theta):,} parameters: the variance that")
    print(
        f"   they give over the exact one is {ratio.mean():.3f} ± {ratio.std():.3f}",
        end=" ",
    )
    print(f"(expected: 1 ± {math.sqrt(2 / NUM_SAMPLES):.3f} for each input).\n")

    print("4. Against dense matrices")
    D = dense_jacobian(model, X)
    A = D.T @ D / NOISE**2 + damping * torch.eye(len(theta), dtype=D.dtype)
    Jd = dense_jacobian(model, grid)
    solved = torch.linalg.solve(A, Jd.T)
    report("predictive variance", variance, (Jd.T * solved).sum(0))
    report("log determinant", G.logdet(damping), torch.linalg.slogdet(A)[1])
    report("(G + λI)⁻¹ times 300 vectors", posterior @ Jd.T, solved)
    with torch.no_grad():
        f = model(grid)[:, 0]
    draw(X, y, grid, f, sd, moved[:, :8], curve)
    print(f"\nFigure: {FIGURE}\nDone in {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
