"""Solvers commute with ``A -> c A`` and ``b -> c b``, exactly for a power of two ``c``.

The law is tested to the last bit, and once against a dense solution, so that it is not a
law about two wrong answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from curvop import (
    CGInverseLinearOperator,
    DiagonalLinearOperator,
    LSMRInverseLinearOperator,
    MINRESInverseLinearOperator,
    NeumannInverseLinearOperator,
    Solution,
    assume_psd,
    assume_symmetric,
    cg,
    cg_shifts,
    jacobi_preconditioner,
    lsmr,
    minres,
    nystrom_preconditioner,
)
from tests.comparing import random
from tests.solvers.matrices import indefinite, positive, with_spectrum

N = 24
SINGLE = [-100, -80, -54, -20, 20, 34, 66, 84, 100]  # 1e-30 to 1e30
DOUBLE = [-664, -332, 332, 664]  # 1e-200 to 1e200
SCALES = [
    *(pytest.param(torch.float32, e, id=f"single, 2^{e}") for e in SINGLE),
    *(pytest.param(torch.float64, e, id=f"double, 2^{e}") for e in DOUBLE),
]


def well() -> Tensor:
    """Eigenvalues from 1 to 3."""
    return with_spectrum(torch.linspace(1, 3, N, dtype=torch.float64))


Solve = Callable[[Tensor, Tensor, float], Solution]
"""The solver for ``c A x = b``, given ``c A``, ``b``, and the ``c`` of other numbers."""


def inverse_diagonal(A: Tensor) -> DiagonalLinearOperator:
    return DiagonalLinearOperator([1 / A.diagonal()])


SOLVERS: dict[str, tuple[Tensor, Solve]] = {
    "cg": (well(), lambda A, b, c: cg(assume_psd(A), b)),
    "cg to rounding": (well(), lambda A, b, c: cg(assume_psd(A), b, rtol=0, maxiter=60)),
    "cg, ill-conditioned": (
        positive(N, 1e4),
        lambda A, b, c: cg(assume_psd(A), b, rtol=1e-3),
    ),
    "cg, preconditioned": (
        well(),
        lambda A, b, c: cg(assume_psd(A), b, M=inverse_diagonal(A)),
    ),
    "cg, indefinite": (indefinite(N, 6), lambda A, b, c: cg(assume_psd(A), b)),
    "cg from x0": (well(), lambda A, b, c: cg(assume_psd(A), b, x0=ones(b) / c)),
    "cg_shifts": (
        well(),
        lambda A, b, c: cg_shifts(assume_psd(A), b[:, 0], [0.0, 0.1 * c, 2 * c]),
    ),
    "minres": (well(), lambda A, b, c: minres(assume_symmetric(A), b)),
    "minres, shifted": (
        well(),
        lambda A, b, c: minres(assume_symmetric(A), b, shift=-0.1 * c),
    ),
    "minres, indefinite": (
        indefinite(N, 6),
        lambda A, b, c: minres(assume_symmetric(A), b, rtol=1e-4),
    ),
    "minres, preconditioned": (
        well(),
        lambda A, b, c: minres(assume_symmetric(A), b, M=inverse_diagonal(A)),
    ),
    "minres, singular": (
        with_spectrum(torch.linspace(0, 3, N, dtype=torch.float64)),
        lambda A, b, c: minres(assume_symmetric(A), b),
    ),
    "minres from x0": (
        well(),
        lambda A, b, c: minres(assume_symmetric(A), b, x0=ones(b) / c),
    ),
    "lsmr": (well(), lambda A, b, c: lsmr(A, b)),
    "lsmr, tall": (random(N, 9, seed=3), lambda A, b, c: lsmr(A, b)),
    "lsmr, damped": (random(N, 9, seed=3), lambda A, b, c: lsmr(A, b, damp=0.5 * c)),
    "lsmr from x0": (well(), lambda A, b, c: lsmr(A, b, x0=ones(b) / c)),
}


def ones(b: Tensor) -> Tensor:
    return torch.ones_like(b)


def same(a: Tensor, b: Tensor) -> None:
    """Equal to the last bit."""
    assert torch.equal(a, b), float((a - b).abs().max())


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("dtype", "e"), SCALES)
def test_solvers_commute_with_scales_of_the_matrix(
    name: str, dtype: torch.dtype, e: int
) -> None:
    """The solution of ``c A x = b`` is that of ``A x = b`` over ``c``."""
    A, solve = SOLVERS[name]
    A, c = A.to(dtype), math.ldexp(1.0, e)
    b = random(len(A), 2, seed=7).to(dtype)
    one, scaled = solve(A, b, 1.0), solve(A * c, b, c)
    assert scaled.statuses == one.statuses
    assert scaled.iterations == one.iterations
    same(scaled.x * c, one.x)
    same(scaled.residual_norm, one.residual_norm)
    of_history = c if name.startswith("lsmr") else 1.0  # of the normal equations
    same(scaled.history / of_history, one.history)


@pytest.mark.parametrize("name", [name for name in SOLVERS if "x0" not in name])
@pytest.mark.parametrize(("dtype", "e"), SCALES)
def test_solvers_commute_with_scales_of_the_right_hand_side(
    name: str, dtype: torch.dtype, e: int
) -> None:
    """The solution of ``A x = c b`` is ``c`` times that of ``A x = b``."""
    A, solve = SOLVERS[name]
    A, c = A.to(dtype), math.ldexp(1.0, e)
    b = random(len(A), 2, seed=7).to(dtype)
    one, scaled = solve(A, b, 1.0), solve(A, c * b, 1.0)
    assert scaled.statuses == one.statuses
    assert scaled.iterations == one.iterations
    same(scaled.x / c, one.x)
    same(scaled.residual_norm / c, one.residual_norm)


@pytest.mark.parametrize("solver", [cg, minres])
@pytest.mark.parametrize(("dtype", "e"), SCALES)
def test_solutions_do_not_depend_on_the_scale_of_the_preconditioner(
    solver: Callable[..., Solution], dtype: torch.dtype, e: int
) -> None:
    """A preconditioner knows directions only."""
    A, b = assume_psd(well().to(dtype)), random(N, 2, seed=7).to(dtype)
    d = torch.linspace(0.5, 1, N, dtype=dtype)
    one = solver(A, b, M=DiagonalLinearOperator([d]))
    scaled = solver(A, b, M=DiagonalLinearOperator([d * 4.0 ** (e // 2)]))
    assert (scaled.status, scaled.iterations) == (one.status, one.iterations)
    same(scaled.x, one.x)


@pytest.mark.parametrize(("dtype", "e"), SCALES)
@pytest.mark.parametrize("name", ["cg", "minres", "minres, shifted", "lsmr"])
def test_solutions_are_right_at_every_scale(name: str, dtype: torch.dtype, e: int) -> None:
    """Against a dense solution in double precision."""
    A, solve = SOLVERS[name]
    c = math.ldexp(1.0, e)
    b = random(N, 2, seed=7)
    found = solve((A * c).to(dtype), b.to(dtype), c)
    dense = A + 0.1 * torch.eye(N, dtype=torch.float64) if "shifted" in name else A
    truth = torch.linalg.solve(dense, b)
    assert found.status == "converged"
    gap = (found.x.double() * c - truth).norm() / truth.norm()
    assert float(gap) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-6, 1e-8, 1e-12])
def test_minres_does_not_take_small_matrices_for_singular_ones(scale: float) -> None:
    """A damping of a tenth of the least eigenvalue, in single precision."""
    H, b = well(), random(N, seed=7)
    found = minres(assume_symmetric((scale * H).float()), b.float(), shift=-0.1 * scale)
    truth = torch.linalg.solve(scale * (H + 0.1 * torch.eye(N, dtype=torch.float64)), b)
    assert found.status == "converged"
    assert float((found.x.double() - truth).norm() / truth.norm()) < 1e-5


@pytest.mark.parametrize(("dtype", "e"), SCALES)
@pytest.mark.parametrize("kind", ["cg", "minres", "lsmr", "neumann"])
def test_inverses_commute_with_scales(kind: str, dtype: torch.dtype, e: int) -> None:
    """``(c A)⁻¹ b = A⁻¹ b / c``."""
    c, b = math.ldexp(1.0, e), random(N, 2, seed=7).to(dtype)

    def product(c: float) -> Tensor:
        A = assume_psd(well().to(dtype) * c)
        if kind == "neumann":
            return NeumannInverseLinearOperator(A, scale=0.5 / c) @ b
        inverse = {
            "cg": CGInverseLinearOperator,
            "minres": MINRESInverseLinearOperator,
            "lsmr": LSMRInverseLinearOperator,
        }[kind]
        return inverse(A) @ b

    same(product(c) * c, product(1.0))


def test_neumann_series_of_zero_is_zero() -> None:
    """Nothing is left of nothing."""
    A = NeumannInverseLinearOperator(assume_psd(well().float()), scale=0.5)
    b = torch.stack([torch.zeros(N), random(N, seed=7).float()], 1)
    assert not (A @ b)[:, 0].any()


@pytest.mark.parametrize(("dtype", "e"), SCALES)
def test_preconditioners_commute_with_scales(dtype: torch.dtype, e: int) -> None:
    """Jacobi's is ``1/c`` of that of ``A``; Nyström's does not depend on ``c``."""
    A, c = positive(N, 100).to(dtype), math.ldexp(1.0, e)

    def both(c: float) -> tuple[Tensor, Tensor]:
        scaled = assume_psd(A * c)
        jacobi = jacobi_preconditioner(
            scaled,
            num_probes=8,
            damping=0.01 * c,
            generator=torch.Generator().manual_seed(0),
        )
        nystrom = nystrom_preconditioner(
            scaled, 5, damping=0.25 * c, generator=torch.Generator().manual_seed(0)
        )
        eye = torch.eye(N, dtype=dtype)
        return jacobi @ eye, nystrom @ eye

    (jacobi, nystrom), (jacobi_c, nystrom_c) = both(1.0), both(c)
    same(jacobi_c * c, jacobi)
    torch.testing.assert_close(nystrom_c, nystrom)  # the root of c is no power of two


def test_a_solution_that_overflows_is_refused() -> None:
    """What single precision does not hold is not called a solution."""
    A, b = 1e-30 * torch.eye(3), 1e30 * torch.ones(3)
    with pytest.raises(FloatingPointError, match="overflow"):
        cg(assume_psd(A), b)
