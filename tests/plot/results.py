"""Results to draw, made by hand: the same on every machine."""

from __future__ import annotations

import math

import torch

from curvop import Density, Eigenpairs, Estimate, Landscape, Solution
from curvop.monitoring import CurvatureRecord
from curvop.spectra import GridScale, broadened, even_grid


def pairs(values=(-2.5, -0.4, 1.5, 3.0, 7.0), residuals=(0.3, 0.1, 0.05, 0.6, 0.2)):
    k = len(values)
    v, r = (torch.tensor(x, dtype=torch.float64) for x in (values, residuals))
    return Eigenpairs(v, torch.eye(20, k, dtype=torch.float64), r, "converged", 40)


def density(kind="linear"):
    """A bulk at zero and two outliers, seen by four probes that differ a little."""
    bulk = 0.3 * torch.linspace(-1, 1, 40, dtype=torch.float64) ** 3
    nodes = torch.cat([bulk, torch.tensor([4.0, 9.0], dtype=torch.float64)])
    nodes = nodes + 0.02 * torch.arange(4)[:, None] * nodes
    weights = torch.ones(4, 42, dtype=torch.float64)
    weights[:, -2:] = torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.2, 0.15], [0.25, 0.1]])
    weights = weights / weights.sum(1, keepdim=True)
    scale = GridScale(kind, 1e-3)
    grid, sigma = even_grid(nodes, scale, 400, 0.02)
    samples = broadened(nodes, weights, grid, scale, sigma)
    error = samples.std(0) / math.sqrt(4)
    return Density(grid, samples.mean(0), error, nodes, weights, "converged", 168)


def traces():
    return {
        "conv.weight": Estimate(31.0, 4.0, 50),
        "conv.bias": Estimate(-2.0, 0.8, 50),
        "head.weight": Estimate(12.5, 1.5, 50),
        "head.bias": Estimate(4.0, 0.2, 50),
    }


def solution(rate=0.6, iterations=20, status="converged"):
    history = rate ** torch.arange(iterations + 1, dtype=torch.float64)
    x = torch.zeros(3, dtype=torch.float64)
    return Solution(x, status, iterations, history[-1], history, (status,))


def two_columns():
    """The first has ended after 5 iterations, the second was broken off."""
    n = torch.arange(13, dtype=torch.float64)
    history = torch.stack([0.1 ** n.clamp(max=5), 0.7**n], 1)
    x = torch.zeros(3, 2, dtype=torch.float64)
    ends = ("converged", "maxiter")
    return Solution(x, "maxiter", 12, history[-1], history, ends)


def landscape(eigenvalues=(8.0, 1.0)):
    """A valley that bends: the quadratic model holds at its centre only."""
    a = torch.linspace(-1, 1, 21, dtype=torch.float64)
    b = torch.linspace(-2, 2, 31, dtype=torch.float64)
    A, B = a[:, None], b[None, :]
    loss = 0.5 + 4 * (A - 0.25 * B**2) ** 2 + 0.5 * B**2
    values = None if eigenvalues is None else torch.tensor(eigenvalues).double()
    curvature = torch.diag(torch.tensor([8.0, 1.0], dtype=torch.float64))
    return Landscape(a, b, loss, 0.5, torch.zeros(2).double(), curvature, values)


def history(preconditioned=False, momentum=0.0, num=25):
    """Sharpening to the threshold, and hovering there; a drop of the learning rate."""
    records = []
    for i in range(num):
        step, eta = 40 * i, 0.1 if i < 20 else 0.08
        top = min(2 / 0.1, 3 + 1.2 * i) + 0.7 * math.sin(2 * i)
        records.append(
            CurvatureRecord(
                step=step,
                training_seconds=0.5 * i,
                seconds=0.04,
                loss=2.3 * 0.9**i,
                gradient_norm=0.5,
                alignment=0.7,
                values=(top, 0.6 * top, 0.4 * top),
                residuals=(0.8, 0.5, 0.4),
                status="converged",
                trace=3 * top,
                trace_error=1.0,
                num_matvecs=20,
                learning_rate=eta,
                threshold=(2 + 2 * momentum) / eta,
                preconditioned_sharpness=top * 0.9 if preconditioned else None,
                preconditioned_residual=0.3 if preconditioned else None,
            )
        )
    return tuple(records)
