"""Results of the library, from what the sections keep of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvop.checkpoint import State
from curvop.estimate import Estimate
from curvop.reporting.effective import EffectiveDimension, effective_dimensions
from curvop.reporting.findings import Findings
from curvop.reporting.sections import block_estimates
from curvop.spectra import Density, Eigenpairs, GridKind, GridScale, broadened, even_grid

POINTS, WIDTH, LINEAR = 512, 0.01, 1e-4  # as spectral_density has them


def section(findings: Findings, name: str) -> State:
    """What was found; empty if nothing was."""
    return findings.sections.get(name, {})


def eigenpairs(findings: Findings, name: str) -> Eigenpairs | None:
    """Eigenvalues without their vectors; ``None`` if there are none."""
    state = section(findings, name)
    values = state.get("values")
    if values is None or not len(values):
        return None
    return Eigenpairs(
        values.flip(0),
        torch.zeros(0, len(values), dtype=values.dtype),
        state["residuals"].flip(0),
        state["solver"],
        state.get("products", 0),
    )


def both_ends(findings: Findings) -> Eigenpairs | None:
    """The eigenvalues of both ends, each once; ``None`` if there are none."""
    upper, lower = (eigenpairs(findings, name) for name in ("top", "bottom"))
    if upper is None or lower is None:
        return upper or lower
    others = findings.model["parameters"] - len(upper.values)  # the ends may overlap
    status = upper.status if upper.status != "converged" else lower.status
    values = torch.cat([lower.values[:others], upper.values])
    residuals = torch.cat([lower.residuals[:others], upper.residuals])
    vectors = torch.zeros(0, len(values), dtype=values.dtype)
    return Eigenpairs(values, vectors, residuals, status, 0)


def density(findings: Findings, kind: GridKind) -> Density | None:
    """The density on one of the grids, from its Gauss rules; ``None`` without a probe."""
    state = section(findings, "density")
    if state.get("nodes") is None:
        return None
    nodes, weights = state["nodes"], state["weights"]
    scale = GridScale(kind, LINEAR * float(nodes.abs().max()) or 1.0)
    grid, sigma = even_grid(nodes, scale, POINTS, WIDTH)
    samples = broadened(nodes, weights, grid, scale, sigma)  # [p, n]
    p = len(samples)
    error = samples.std(0) / math.sqrt(p) if p > 1 else torch.full_like(grid, math.nan)
    status = "converged" if state["status"] == "done" else "interrupted"
    products = state.get("products", 0)
    return Density(grid, samples.mean(0), error, nodes, weights, status, products)


def dimensions(findings: Findings) -> EffectiveDimension | None:
    """Effective dimensions against damping; ``None`` without a probe."""
    other = "dimension" in findings.wanted
    state = section(findings, "dimension" if other else "density")
    if state.get("nodes") is None:
        return None
    N, psd = findings.model["parameters"], findings.psd or other
    nodes, weights, steps = (state[key] for key in ("nodes", "weights", "steps"))
    return effective_dimensions(nodes, weights, N, steps, psd=psd)


def traces(findings: Findings) -> dict[str, Estimate]:
    """Those of the blocks, by name."""
    state = section(findings, "traces")
    if not state.get("rounds"):
        return {}
    names, values, errors = block_estimates(state)
    return {
        name: Estimate(float(value), float(error), state.get("products", 0))
        for name, value, error in zip(names, values, errors, strict=True)
    }


def trace(findings: Findings) -> Estimate | None:
    """The trace of the whole matrix."""
    state = section(findings, "traces")
    if "trace" not in state:
        return None
    value, error = state["trace"]
    return Estimate(value, error, 0)


def gradient_shares(findings: Findings) -> Tensor | None:
    """Of the squared gradient along each top eigenvector, the largest value first."""
    shares: Tensor | None = section(findings, "top").get("gradient_shares")
    return shares
