"""Spectral densities against those of known spectra."""

from __future__ import annotations

import math

import pytest
import torch

from curvop import DiagonalLinearOperator
from curvop.spectra import spectral_density
from tests.comparing import error, random
from tests.spectra.matrices import SPECTRA, Watched, linspace, symmetric


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussians(nodes, weights, grid, sigma):
    heights = weights / (sigma * math.sqrt(2 * math.pi))
    return heights @ torch.exp(-(((grid - nodes[:, None]) / sigma) ** 2) / 2)


@pytest.mark.parametrize("grid", ["linear", "symlog", linspace(-0.3, 0.7, 37)])
@pytest.mark.parametrize("name", ["60 negative", "rank 2", "identity", "zero", "curvature"])
def test_integrates_to_one(name, grid):
    density = spectral_density(
        symmetric(SPECTRA[name]),
        num_probes=2,
        num_matvecs=10,
        generator=seeded(),
        grid=grid,
    )
    assert abs(float(torch.trapezoid(density.values, density.grid)) - 1) < 1e-12
    assert (density.values >= 0).all()
    assert (density.grid.diff() > 0).all()
    assert error(density.weights.sum(1), torch.ones(2)) < 1e-12


def test_is_within_its_band():
    """Of a diagonal in any order, hence of any matrix: the probes are Gaussian."""
    spectrum = torch.cat([torch.zeros(600), linspace(-0.2, 1, 400)]).double()
    inside, runs = [], 10
    for seed in range(runs):
        density = spectral_density(
            DiagonalLinearOperator(spectrum), num_probes=16, generator=seeded(seed)
        )
        sigma = 0.01 * float(density.nodes.max() - density.nodes.min())
        truth = gaussians(spectrum, torch.full((1000,), 1e-3).double(), density.grid, sigma)
        away = 1e-6 + 3 * density.standard_error
        inside.append(((density.values - truth).abs() < away).double().mean())
    assert sum(inside) / runs > 0.95


def test_values_are_sums_of_gaussians():
    density = spectral_density(
        symmetric(SPECTRA["60 negative"]), num_probes=1, generator=seeded(), num_points=4000
    )
    sigma = 0.01 * float(density.nodes.max() - density.nodes.min())
    truth = gaussians(density.nodes[0], density.weights[0], density.grid, sigma)
    assert error(density.values, truth) < 1e-3
    assert density.standard_error.isnan().all()


def test_nodes_and_weights_are_a_gauss_rule():
    """m products integrate polynomials of degree 2m - 1 exactly."""
    A = symmetric(linspace(-1, 1, 60))
    density = spectral_density(A, num_probes=3, num_matvecs=6, generator=seeded(4))
    generator = seeded(4)
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        v = torch.randn(60, generator=generator, dtype=torch.float64)
        v, w = v / v.norm(), v / v.norm()
        for degree in range(12):
            assert abs(float(v @ w) - float((weights * nodes**degree).sum())) < 1e-13
            w = A @ w


def test_all_products_find_all_eigenvalues_once():
    spectrum = random(30).sort().values
    density = spectral_density(
        symmetric(spectrum), num_probes=2, num_matvecs=100, generator=seeded()
    )
    assert error(density.nodes, spectrum.expand(2, 30)) < 1e-10


def test_a_chain_that_ends_early():
    density = spectral_density(
        symmetric(SPECTRA["rank 2"]), num_probes=4, num_matvecs=20, generator=seeded()
    )
    assert density.num_matvecs == 12
    assert error(density.nodes, torch.tensor([-1.0, 0.0, 2.0]).expand(4, 3)) < 1e-12


def test_the_band_shrinks_with_probes():
    A = symmetric(SPECTRA["60 negative"])
    few, many = (
        spectral_density(A, num_probes=p, num_matvecs=16, generator=seeded())
        for p in (8, 128)
    )
    ratio = few.standard_error.mean() / many.standard_error.mean()
    assert 3 < float(ratio) < 5.3


def test_symlog_shows_the_bulk():
    """Eigenvalues even in the logarithm have a density like 1 / t."""
    spectrum = torch.cat([-torch.logspace(-3, 0, 200), torch.logspace(-3, 0, 200)]).double()
    density = spectral_density(
        DiagonalLinearOperator(spectrum),
        num_matvecs=400,
        num_probes=2,
        generator=seeded(),
        grid="symlog",
        linear_width=1e-4,
        width=0.05,
    )
    middle = (density.grid > 3e-3) & (density.grid < 0.3)
    share = density.values[middle] * density.grid[middle]
    assert share.std() / share.mean() < 0.35
    assert abs(float(share.mean()) - 0.5 / math.log(1e3)) < 0.02


def test_generators():
    A = symmetric(SPECTRA["rank 2"])
    state = torch.get_rng_state()
    first, second = (spectral_density(A, num_probes=1).weights for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    a, b = (spectral_density(A, generator=seeded(3)) for _ in range(2))
    assert torch.equal(a.values, b.values)


def test_products_are_counted():
    A = Watched(symmetric(SPECTRA["60 negative"]))
    density = spectral_density(A, num_probes=3, num_matvecs=7, generator=seeded())
    assert density.num_matvecs == A.seen[0] == 21
    assert density.status == "converged"


def test_ctrl_c_gives_the_probes_done():
    def watch(count):
        if count == 25:
            raise KeyboardInterrupt

    A = symmetric(SPECTRA["60 negative"])
    density = spectral_density(Watched(A, watch), num_matvecs=10, generator=seeded())
    assert density.status == "interrupted"
    assert density.nodes.shape == (2, 10)
    full = spectral_density(A, num_probes=2, num_matvecs=10, generator=seeded())
    assert torch.equal(density.values, full.values)
    with pytest.raises(KeyboardInterrupt):
        spectral_density(Watched(A, watch), num_matvecs=40, generator=seeded())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_probes": 0}, ValueError, "num_probes"),
        ({"num_matvecs": 2.5}, TypeError, "num_matvecs"),
        ({"num_points": 1}, ValueError, "num_points"),
        ({"width": 0.0}, ValueError, "width"),
        ({"linear_width": -1.0}, ValueError, "linear_width"),
        ({"grid": "log"}, ValueError, "'symlog'"),
        ({"grid": torch.tensor([1.0, 0.0])}, ValueError, "ascending"),
        ({"generator": 3}, TypeError, "manual_seed"),
    ],
)
def test_bad_input(options, kind, message):
    with pytest.raises(kind, match=message):
        spectral_density(torch.eye(4), **options)


def test_needs_symmetry():
    with pytest.raises(ValueError, match="assume_symmetric"):
        spectral_density(random(4, 4))
