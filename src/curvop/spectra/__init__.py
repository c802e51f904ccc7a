"""Eigenvalues, singular values and spectral densities of operators."""

from curvop.eigenpairs import Eigenpairs
from curvop.spectra.density import (
    Density,
    GridKind,
    GridScale,
    broadened,
    broadened_density,
    even_grid,
    spectral_density,
)
from curvop.spectra.eigsh import eigsh
from curvop.spectra.svds import SingularTriplets, svds

__all__ = [
    "Density",
    "Eigenpairs",
    "GridKind",
    "GridScale",
    "SingularTriplets",
    "broadened",
    "broadened_density",
    "eigsh",
    "even_grid",
    "spectral_density",
    "svds",
]
