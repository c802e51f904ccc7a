"""Spectra commute with ``A -> c A``: values are ``c`` times as large, vectors the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from curvop import (
    DiagonalLinearOperator,
    assume_psd,
    assume_symmetric,
    eigsh,
    spectral_density,
    svds,
)
from curvop.checkpoint import Checkpoint
from curvop.operators import as_operator
from tests.comparing import random
from tests.solvers.matrices import with_spectrum

N = 48
SINGLE = [-100, -80, -54, -20, 34, 66, 84, 100]  # 1e-30 to 1e30
DOUBLE = [-664, -332, 332, 664]  # 1e-200 to 1e200
SCALES = [
    *(pytest.param(torch.float32, e, id=f"single, 2^{e}") for e in SINGLE),
    *(pytest.param(torch.float64, e, id=f"double, 2^{e}") for e in DOUBLE),
]
scales = pytest.mark.parametrize(("dtype", "e"), SCALES)
VALUES = torch.linspace(1, 3, N, dtype=torch.float64)  # condition 3


def rounding(dtype: torch.dtype) -> float:
    """What results may differ by: LAPACK scales by other numbers than powers of two."""
    return 100 * torch.finfo(dtype).eps


def tops(*, dtype: torch.dtype, c: float, **options: Any) -> tuple[Tensor, Any]:
    """Values over ``c``, and all that was found."""
    A = assume_psd((with_spectrum(VALUES) * c).to(dtype))
    found = eigsh(A, 3, generator=Generator().manual_seed(0), **options)
    return found.values.double() / c, found


EIGSH: dict[str, dict[str, Any]] = {
    "LA": {"which": "LA"},
    "SA": {"which": "SA"},
    "BE": {"which": "BE"},
    "small basis": {"which": "LM", "ncv": 12},
    "block": {"which": "LA", "block_size": 2},
    "lobpcg": {"which": "LA", "method": "lobpcg"},
    "lobpcg, SA": {"which": "SA", "method": "lobpcg"},
}


@pytest.mark.parametrize("name", EIGSH)
@scales
def test_eigenvalues_scale(name: str, dtype: torch.dtype, e: int) -> None:
    """Values, residuals and statuses at ``c A`` and at ``A``, and the truth."""
    one, at_one = tops(dtype=dtype, c=1.0, **EIGSH[name])
    values, found = tops(dtype=dtype, c=math.ldexp(1.0, e), **EIGSH[name])
    assert found.status == at_one.status == "converged"
    torch.testing.assert_close(values, one, rtol=rounding(dtype), atol=0)
    truth = {"SA": VALUES[:3], "BE": VALUES[[0, -2, -1]]}.get(
        EIGSH[name]["which"], VALUES[-3:]
    )
    error = (values - truth).abs()
    assert bool((error <= 10 * rounding(dtype)).all())
    residuals = found.residuals.double() / math.ldexp(1.0, e)
    assert bool(residuals.isfinite().all())
    assert bool((residuals > 0).any())
    assert abs(found.num_matvecs - at_one.num_matvecs) <= 2


@scales
def test_shift_invert_scales(dtype: torch.dtype, e: int) -> None:
    """Values next to zero by an inverse of ``1/c`` the size."""
    values = torch.cat([-VALUES, VALUES])
    A, c = with_spectrum(values), math.ldexp(1.0, e)
    found = eigsh(
        assume_symmetric((A * c).to(dtype)),
        2,
        which="SM",
        inverse=assume_symmetric((torch.linalg.inv(A) / c).to(dtype)),
    )
    assert found.status == "converged"
    truth = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        found.values.double() / c, truth, rtol=10 * rounding(dtype), atol=0
    )


@pytest.mark.parametrize("method", ["lanczos", "lobpcg"])
@scales
def test_generalised_problems_scale(method: Any, dtype: torch.dtype, e: int) -> None:
    """``A v = λ c P v`` has values over ``c``, and vectors over its root."""
    A, c = with_spectrum(VALUES), 4.0 ** (e // 2)
    p = torch.linspace(1, 2, N, dtype=torch.float64)
    found = eigsh(
        assume_psd(A.to(dtype)),
        2,
        which="LA",
        P=DiagonalLinearOperator([(p * c).to(dtype)]),
        method=method,
    )
    assert found.status == "converged"
    root = p.rsqrt()
    truth = torch.linalg.eigvalsh(root[:, None] * A * root)[-2:]
    torch.testing.assert_close(
        found.values.double() * c, truth, rtol=10 * rounding(dtype), atol=0
    )
    X = found.vectors.double() * c**0.5
    gram = X.T @ (p[:, None] * X)
    torch.testing.assert_close(
        gram, torch.eye(2, dtype=torch.float64), rtol=0, atol=10 * rounding(dtype)
    )


@pytest.mark.parametrize("side", ["A", "M", "both"])
@scales
def test_preconditioned_lobpcg_scales(side: str, dtype: torch.dtype, e: int) -> None:
    """However large the preconditioner is, with the matrix or without."""
    values = torch.logspace(0, 2, N, dtype=torch.float64)
    A, c = with_spectrum(values), math.ldexp(1.0, e)
    of_A, of_M = (c if side != "M" else 1.0), (c if side != "A" else 1.0)
    found = eigsh(
        assume_psd((A * of_A).to(dtype)),
        2,
        which="SA",
        method="lobpcg",
        M=assume_psd((torch.linalg.inv(A) * of_M).to(dtype)),
    )
    assert found.status == "converged"
    torch.testing.assert_close(
        found.values.double() / of_A, values[:2], rtol=0, atol=100 * rounding(dtype)
    )


@pytest.mark.parametrize("e", SINGLE)
def test_eigenvalues_of_large_matrices_scale(e: int) -> None:
    """Norms of long vectors in single precision are summed in parts."""
    d, c = torch.linspace(1, 3, 5000), math.ldexp(1.0, e)
    d[-3:] = torch.tensor([7.0, 8.0, 9.0])
    found = eigsh(DiagonalLinearOperator([d * c]), 3, which="LA")
    assert found.status == "converged"
    torch.testing.assert_close(found.values / c, d[-3:], rtol=1e-5, atol=0)


@scales
def test_start_vectors_of_any_size(dtype: torch.dtype, e: int) -> None:
    """Only their direction counts."""
    v0, c = random(N, seed=5).to(dtype), math.ldexp(1.0, e)
    one, at_one = tops(dtype=dtype, c=1.0, which="LA", v0=v0)
    values, found = tops(dtype=dtype, c=1.0, which="LA", v0=v0 * c)
    assert torch.equal(values, one)
    assert (found.status, found.num_matvecs) == (at_one.status, at_one.num_matvecs)


@pytest.mark.parametrize("shape", [(N, N), (60, 20), (20, 60)])
@scales
def test_singular_values_scale(shape: tuple[int, int], dtype: torch.dtype, e: int) -> None:
    """Though eigenvalues of ``AᵀA`` are squares."""
    U, _, Vh = torch.linalg.svd(random(*shape, seed=4), full_matrices=False)
    values = torch.linspace(3, 1, min(shape), dtype=torch.float64)
    A, c = (U * values) @ Vh, math.ldexp(1.0, e)
    found = svds((A * c).to(dtype), 3, generator=Generator().manual_seed(0))
    assert found.status == "converged"
    torch.testing.assert_close(
        found.values.double() / c, values[:3], rtol=rounding(dtype), atol=0
    )
    left, right = found.U.double(), found.V.double()
    gap = (A @ right - left * (found.values.double() / c)).norm()
    assert float(gap) < 100 * rounding(dtype)
    assert bool(found.residuals.isfinite().all())


def test_singular_values_of_zero_are_zero() -> None:
    """A scale is not looked for where there is none."""
    assert not svds(torch.zeros(4, 3), 2).values.any()


@pytest.mark.parametrize("grid", ["linear", "symlog"])
@scales
def test_densities_scale(grid: Any, dtype: torch.dtype, e: int) -> None:
    """On a grid ``c`` times as wide, with densities and errors over ``c``."""

    def at(c: float) -> Any:
        A = assume_symmetric((with_spectrum(VALUES) * c).to(dtype))
        return spectral_density(
            A, num_matvecs=12, num_probes=4, grid=grid, generator=Generator().manual_seed(0)
        )

    c = math.ldexp(1.0, e)
    one, found = at(1.0), at(c)
    close = {"rtol": 1e-6 if dtype == torch.float64 else 1e-2, "atol": 1e-4}
    torch.testing.assert_close(found.grid / c, one.grid, **close)
    torch.testing.assert_close(found.nodes / c, one.nodes, **close)
    torch.testing.assert_close(found.values * c, one.values, **close)
    torch.testing.assert_close(found.standard_error * c, one.standard_error, **close)
    mass = torch.trapezoid(found.values, found.grid)
    assert abs(float(mass) - 1) < 1e-9
    assert bool((one.standard_error > 0).any())
    mean = float((found.nodes * found.weights).sum(1).mean())
    assert abs(mean / c - 2) < 0.3  # the mean eigenvalue


@pytest.mark.parametrize("e", [-664, 664])
def test_checkpoints_tell_large_and_small_matrices_apart(tmp_path: Path, e: int) -> None:
    """Also where the square of a product over- or underflows."""
    A, c = random(6, 6, seed=1), math.ldexp(1.0, e)
    Checkpoint(tmp_path / "run.pt", as_operator(A * c), {}).save({"n": 1})
    assert Checkpoint(tmp_path / "run.pt", as_operator(A * c), {}).load() == {"n": 1}
    with pytest.raises(ValueError, match="the matrix"):
        Checkpoint(tmp_path / "run.pt", as_operator(random(6, 6, seed=2) * c), {}).load()
