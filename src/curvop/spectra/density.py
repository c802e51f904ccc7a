"""The density of eigenvalues."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from curvop.arguments import integer
from curvop.checkpoint import Checkpoint, State
from curvop.generators import source
from curvop.scaling import unit
from curvop.spectra.basis import Basis
from curvop.spectra.eigenproblem import symmetric
from curvop.spectra.krylov import Krylov
from curvop.spectra.resumable import Interrupts, Products, carry_out

GridKind = Literal["linear", "symlog"]


@dataclass(frozen=True)
class Density:
    """An estimated density of eigenvalues, with an error band.

    Attributes:
        grid: ``t``, ascending, ``[n]``.
        values: Density at ``t``, ``[n]``; its integral by the trapezoidal rule is 1.
        standard_error: Standard deviation of ``values`` over repetitions, estimated from
            the probes, ``[n]``; ``nan`` from one probe. It does not include the blur by the
            Gaussians, nor the error of few Lanczos steps.
        nodes: Ritz values of each probe, ``[num_probes, m]``.
        weights: Their weights, which sum to 1 for each probe, ``[num_probes, m]``.
        status: ``"converged"``; or ``"interrupted"``, with the probes done by then.
        num_matvecs: Number of products with the matrix that it took.
    """

    grid: Tensor  # [n]
    values: Tensor  # [n]
    standard_error: Tensor  # [n]
    nodes: Tensor  # [num_probes, m]
    weights: Tensor  # [num_probes, m]
    status: str
    num_matvecs: int


def spectral_density(
    A: Any,
    *,
    num_probes: int = 8,
    num_matvecs: int = 64,
    generator: Generator | None = None,
    grid: GridKind | Tensor = "linear",
    num_points: int = 1024,
    width: float = 0.01,
    linear_width: float | None = None,
    progressbar: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Density:
    r"""Estimate the density of eigenvalues of a symmetric matrix.

    .. math:: φ(t) = \frac{1}{N} \sum_{i=1}^N g_σ(t - λ_i)
        ≈ \frac{1}{p} \sum_{l=1}^p \sum_{j=1}^m τ_{lj} \, g_σ(t - θ_{lj})

    by stochastic Lanczos quadrature: the Ritz values ``θ`` of ``m`` Lanczos steps from a
    random unit vector, weighted by the squared first entries ``τ`` of their
    eigenvectors, form a Gauss rule for ``vᵀ f(A) v`` (Lin, Saad and Yang, "Approximating
    spectral densities of large matrices", 2016; Golub and Meurant, "Matrices, moments
    and quadrature", 1994). All Lanczos vectors are kept orthogonal, so that no
    eigenvalue appears twice.

    Args:
        A: A symmetric operator, or anything that :func:`as_operator` accepts.
        num_probes: Number ``p`` of random vectors.
        num_matvecs: Products ``m`` for each of them, which is also the number of vectors in
            memory.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system: each call draws others. No global generator is touched.
        grid: ``"linear"``, evenly spaced; ``"symlog"``, evenly spaced in a symmetric
            logarithm, for spectra with a bulk at zero; or the grid itself, ascending
            ``[n]``.
        num_points: Number ``n`` of its points.
        width: ``σ``, as a share of the range of the spectrum. On a ``"symlog"`` grid
            Gaussians have this width in the logarithm, and the density is that of ``t``.
        linear_width: Where the symmetric logarithm becomes linear, by default 1e-4 times
            the largest Ritz value.
        progressbar: Whether to show products and probes.
        checkpoint: A file from which a run that was interrupted is continued, with the
            same result. It is written every few products.

    Returns:
        The density. After Ctrl-C that of the probes done by then.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If ``A`` is not tagged as symmetric, or its products show that it is
            not; if a product is not finite; if something else does not fit; or if the
            checkpoint is of another problem.
        KeyboardInterrupt: If it comes before the first probe is done.

    >>> A = torch.diag(torch.linspace(-1, 1, 100, dtype=torch.float64))
    >>> density = spectral_density(A, generator=torch.Generator().manual_seed(0))
    >>> round(float(torch.trapezoid(density.values, density.grid)), 12)
    1.0
    >>> negative = density.grid <= 0
    >>> share = torch.trapezoid(density.values[negative], density.grid[negative])
    >>> 0.4 < float(share) < 0.6
    True
    """
    A = symmetric(A)
    N = A.shape[0]
    num_probes = integer(num_probes, "num_probes", 1)
    num_matvecs = integer(num_matvecs, "num_matvecs", 1)
    num_points = integer(num_points, "num_points", 2)
    if not 0 < width < math.inf:
        raise ValueError(f"Expected a positive width, got {width}.")
    if linear_width is not None and not 0 < linear_width < math.inf:
        raise ValueError(f"Expected a positive linear_width, got {linear_width}.")
    _check_grid(grid)
    draw = source(generator)
    settings = {
        "algorithm": "spectral_density",
        "num_probes": num_probes,
        "num_matvecs": num_matvecs,
        "generator": None if generator is None else generator.get_state(),
    }

    m = min(num_matvecs, N)
    basis = Basis(N, first=1, capacity=m + 1, dtype=A.dtype, device=A.device)
    run = Quadrature(basis, num_probes, m, draw)
    file = Checkpoint(checkpoint, A, settings)
    with Interrupts() as interrupts:
        stored = file.load(finite=True)
        if stored is not None:
            run.resume(stored)
        multiply = Products(
            A,
            0 if stored is None else stored["count"],
            interrupts,
            progressbar=progressbar,
            label="spectral_density",
        )
        status = carry_out(run, multiply, file, "probes")
    if not run.rules:
        raise KeyboardInterrupt("Interrupted before the first probe was done.")
    nodes, weights = run.nodes_and_weights()

    return broadened_density(
        nodes,
        weights,
        grid,
        num_points=num_points,
        width=width,
        linear_width=linear_width,
        status=status,
        num_matvecs=multiply.count + file.num_matvecs,
    )


def broadened_density(
    nodes: Tensor,
    weights: Tensor,
    grid: GridKind | Tensor,
    *,
    num_points: int = 1024,
    width: float = 0.01,
    linear_width: float | None = None,
    status: str,
    num_matvecs: int,
) -> Density:
    r"""The density from Gauss rules.

    .. math:: φ(t) = \frac{1}{p} \sum_{l=1}^p \sum_{j=1}^m τ_{lj} \, g_σ(t - θ_{lj})

    Args:
        nodes: ``θ``, ``[p, m]``.
        weights: ``τ``, ``[p, m]``.
        grid: See :func:`spectral_density`, also for what follows.
        num_points: Number of points of a grid that is not given.
        width: ``σ``, as a share of the range of the nodes.
        linear_width: Where the symmetric logarithm becomes linear.
        status: The status of the run that computed the rules.
        num_matvecs: Products that it took.

    >>> nodes, weights = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> density = broadened_density(
    ...     nodes, weights, "linear", status="converged", num_matvecs=2
    ... )
    >>> round(float(torch.trapezoid(density.values, density.grid)), 6)
    1.0
    """
    linear = linear_width or 1e-4 * float(nodes.abs().max()) or 1.0
    is_symlog = isinstance(grid, str) and grid == "symlog"
    scale = GridScale("symlog" if is_symlog else "linear", linear)
    points, sigma = even_grid(nodes, scale, num_points, width)
    if isinstance(grid, Tensor):
        points = grid.detach().to("cpu", torch.float64)
    samples = broadened(nodes, weights, points, scale, sigma)  # [p, n]
    p, size = len(samples), unit(samples)
    spread = (samples / size).std(0) if p > 1 else torch.full_like(points, math.nan)
    error = spread * size / math.sqrt(p)
    return Density(points, samples.mean(0), error, nodes, weights, status, num_matvecs)


class Quadrature:
    """A Gauss rule from each of some random vectors.

    Args:
        basis: Where Lanczos vectors are stored.
        num_probes: Number of random vectors.
        num_matvecs: Products for each.
        generator: Source of random vectors.
    """

    def __init__(
        self, basis: Basis, num_probes: int, num_matvecs: int, generator: Generator
    ) -> None:
        self.rules: list[tuple[Tensor, Tensor]] = []
        self._krylov = Krylov(basis)
        self._num_probes = num_probes
        self._num_matvecs = num_matvecs
        self._generator = generator

    def run(self, multiply: Products, save: Callable[[], None]) -> str:
        """Multiply until all probes are done; returns the status."""
        while len(self.rules) < self._num_probes:
            krylov = self._krylov
            if krylov.used == 0:
                krylov.inject(self._generator)
            krylov.expand(multiply)
            if krylov.m == self._num_matvecs or krylov.q == 0:
                theta, S, _ = krylov.ritz()
                self.rules.append((theta, S[0] ** 2))
                self._krylov = Krylov(krylov.basis, scale=krylov.scale)
                multiply.show(probes=f"{len(self.rules)}/{self._num_probes}")
            save()
        return "converged"

    def nodes_and_weights(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights of all probes, ``[p, m]``; shorter rules have weights 0."""
        m = max(len(theta) for theta, _ in self.rules)
        nodes = [torch.cat([t, t[-1:].expand(m - len(t))]) for t, _ in self.rules]
        weights = [torch.cat([w, w.new_zeros(m - len(w))]) for _, w in self.rules]
        return torch.stack(nodes), torch.stack(weights)

    def state(self) -> State:
        """The state of the run."""
        return {
            "panels": self._krylov.basis.panels,
            "krylov": self._krylov.state(),
            "rules": self.rules,
            "generator": self._generator.get_state(),
        }

    def resume(self, state: State) -> None:
        """Continue from this state."""
        basis = self._krylov.basis
        basis.panels[:] = [p.to(basis.basis_device) for p in state["panels"]]
        self._krylov = Krylov.resumed(basis, state["krylov"])
        self.rules = [tuple(rule) for rule in state["rules"]]
        self._generator.set_state(state["generator"])


@dataclass(frozen=True)
class GridScale:
    """The scale in which a grid is even and all Gaussians have the same width.

    Attributes:
        kind: ``u = t``, or ``u = asinh(t / linear)``, which is ``t`` near zero and
            ``± log |t|`` away from it.
        linear: Where the symmetric logarithm changes from one to the other.
    """

    kind: GridKind
    linear: float

    def of(self, t: Tensor) -> Tensor:
        """``u(t)``."""
        return t if self.kind == "linear" else torch.asinh(t / self.linear)

    def back(self, u: Tensor) -> Tensor:
        """``t(u)``."""
        return u if self.kind == "linear" else self.linear * torch.sinh(u)


def even_grid(
    nodes: Tensor, scale: GridScale, num_points: int, width: float
) -> tuple[Tensor, float]:
    """A grid ``[n]`` around the nodes, and the Gaussians' width in its scale.

    Args:
        nodes: Values to cover, with four widths to spare.
        scale: The scale in which it is even.
        num_points: ``n``.
        width: Standard deviation as a share of the range of the nodes.
    """
    u = scale.of(nodes)
    low, high = float(u.min()), float(u.max())
    extent = high - low
    if extent <= 1e-12 * max(abs(low), abs(high)):  # all eigenvalues equal
        extent = max(abs(low), abs(high)) or 1.0
    sigma = width * extent
    low, high = low - 4 * sigma, high + 4 * sigma
    u = torch.linspace(low, high, num_points, dtype=torch.float64)
    return scale.back(u), sigma


def broadened(
    nodes: Tensor, weights: Tensor, grid: Tensor, scale: GridScale, sigma: float
) -> Tensor:
    """Density on the grid of point masses, broadened to Gaussians in its scale.

    The value at a grid point is the mass in its cell, half-way to its neighbours, divided
    by the width of the cell: the trapezoidal rule on the grid gives all the mass, for every
    width of the Gaussians.

    Args:
        nodes: ``[..., m]``.
        weights: ``[..., m]``.
        grid: ``[n]``.
        scale: The scale in which the Gaussians have the same width.
        sigma: Their width.

    Returns:
        ``[..., n]``.
    """
    middles = (grid[1:] + grid[:-1]) / 2
    z = (scale.of(middles) - scale.of(nodes)[..., None]) / (math.sqrt(2) * sigma)
    below = (weights[..., None] * (1 + torch.erf(z)) / 2).sum(-2)  # [..., n - 1]
    total = weights.sum(-1, keepdim=True)
    mass = torch.diff(below, prepend=torch.zeros_like(total), append=total)
    edges = torch.cat([grid[:1], middles, grid[-1:]])
    return mass / torch.diff(edges)


def _check_grid(grid: Any) -> None:
    if isinstance(grid, Tensor):
        if grid.ndim != 1 or len(grid) < 2 or not bool((torch.diff(grid) > 0).all()):
            raise ValueError(
                "Expected a grid of at least 2 ascending points, got shape "
                f"{tuple(grid.shape)}."
            )
    elif grid not in ("linear", "symlog"):
        raise ValueError(f"Expected grid='linear', 'symlog' or a tensor, got {grid!r}.")
