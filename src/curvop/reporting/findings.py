"""What a report found: frozen, as results of the library, as plain data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from curvop.checkpoint import State
from curvop.estimate import Estimate
from curvop.inspection import plain
from curvop.reporting.effective_dimension import EffectiveDimension, effective_dimensions
from curvop.spectra import Density, Eigenpairs, GridKind, GridScale, broadened, even_grid

SCHEMA = 1  # raised when the meaning of a key of the plain data changes
POINTS, WIDTH, LINEAR = 512, 0.01, 1e-4  # as spectral_density has them
MATRICES: dict[str, Literal["Hessian", "GGN"]] = {"hessian": "Hessian", "ggn": "GGN"}


@dataclass(frozen=True)
class Settings:
    """How the report is made."""

    curvature: Literal["hessian", "ggn"] = "hessian"
    k: int = 10  # number of eigenvalues at each end
    tol: float = 1e-4  # residual that is small enough, relative to the norm of the matrix
    seed: int = 0  # of all random vectors
    dtype: torch.dtype | None = None  # to compute in; None for that of the parameters
    device: torch.device | None = None  # to compute on; None for that of the parameters
    budget: float = math.inf  # seconds that it may take; infinite for as long as it needs
    progressbar: bool = False  # show it
    title: str = "model"  # heading of the page


@dataclass(frozen=True)
class Findings:
    """All that a report shows."""

    settings: Settings  # how it was made
    status: str  # "complete", "incomplete" (the time was up) or "interrupted"
    model: dict[str, Any]  # what is known of model, loss, parameters and data
    psd: bool  # the matrix is known to be positive semi-definite
    wanted: tuple[str, ...]  # names of the sections that there should be
    sections: dict[str, State]  # what was computed, by name
    errors: dict[str, str]  # sections that failed, and why
    notes: list[str]  # warnings, each once
    runs: list[dict[str, Any]]  # what each run took; the last is this one
    preconditioner: dict[str, Any] | None = None  # what is known of the preconditioner

    # ---------------------------------------------------------------- as plain data

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not known is ``None``."""
        sections = {name: dict(state) for name, state in self.sections.items()}
        if traces := sections.get("traces"):
            for key in ("names", "sum", "sum_of_squared_errors", "rounds"):
                traces.pop(key, None)
            traces["blocks"] = {
                name: [t.value, t.standard_error] for name, t in self.traces().items()
            }
        if (dimension := self.dimensions()) is not None:
            sections["effective_dimension"] = asdict(dimension)
        found: dict[str, Any] = plain(
            {
                "schema": SCHEMA,
                "status": self.status,
                "settings": asdict(self.settings),
                "problem": self.model,
                "preconditioner": self.preconditioner,
                "sections": sections,
                "errors": self.errors,
                "notes": self.notes,
                "runs": self.runs,
            }
        )
        return found

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    # ------------------------------------------------------- as results of the library

    def section(self, name: str) -> State:
        """What was found; empty if nothing was."""
        return self.sections.get(name, {})

    def eigenpairs(self, name: str) -> Eigenpairs | None:
        """Eigenvalues without their vectors; ``None`` if there are none."""
        state = self.section(name)
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

    def both_ends(self) -> Eigenpairs | None:
        """The eigenvalues of both ends, each once; ``None`` if there are none."""
        upper, lower = (self.eigenpairs(name) for name in ("top", "bottom"))
        if upper is None or lower is None:
            return upper or lower
        others = self.model["parameters"] - len(upper.values)  # the ends may overlap
        status = upper.status if upper.status != "converged" else lower.status
        values = torch.cat([lower.values[:others], upper.values])
        residuals = torch.cat([lower.residuals[:others], upper.residuals])
        vectors = torch.zeros(0, len(values), dtype=values.dtype)
        return Eigenpairs(values, vectors, residuals, status, 0)

    def density(self, kind: GridKind) -> Density | None:
        """The density on one of the grids, from Gauss rules; ``None`` without a probe."""
        state = self.section("density")
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

    def dimensions(self) -> EffectiveDimension | None:
        """Effective dimensions against damping; ``None`` without a probe."""
        other = "dimension" in self.wanted
        state = self.section("dimension" if other else "density")
        if state.get("nodes") is None:
            return None
        N, psd = self.model["parameters"], self.psd or other
        nodes, weights, steps = (state[key] for key in ("nodes", "weights", "steps"))
        return effective_dimensions(nodes, weights, N, steps, psd=psd)

    def traces(self) -> dict[str, Estimate]:
        """Those of the blocks, by name."""
        state = self.section("traces")
        n, products = state.get("rounds", 0), state.get("products", 0)
        if not n:
            return {}
        values = state["sum"] / n
        errors = state["sum_of_squared_errors"].sqrt() / n
        numbers = zip(state["names"], values.tolist(), errors.tolist(), strict=True)
        return {name: Estimate(value, error, products) for name, value, error in numbers}

    def trace(self) -> Estimate | None:
        """The trace of the whole matrix."""
        state = self.section("traces")
        if "trace" not in state:
            return None
        value, error = state["trace"]
        return Estimate(value, error, 0)

    def gradient_shares(self) -> Tensor | None:
        """Of the squared gradient along each top eigenvector, the largest value first."""
        shares: Tensor | None = self.section("top").get("gradient_shares")
        return shares
