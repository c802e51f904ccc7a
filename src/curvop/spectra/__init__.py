"""Eigenvalues, singular values and spectral densities of operators."""

from curvop.eigenpairs import Eigenpairs
from curvop.spectra.density import Density, spectral_density
from curvop.spectra.eigsh import eigsh
from curvop.spectra.svds import SingularTriplets, svds

__all__ = [
    "Density",
    "Eigenpairs",
    "SingularTriplets",
    "eigsh",
    "spectral_density",
    "svds",
]
