"""SciPy's solvers on exported operators, against dense linear algebra."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import (
    LinearOperator,
    aslinearoperator,
    cg,
    eigsh,
    expm_multiply,
    lobpcg,
    lsmr,
    lsqr,
    minres,
    onenormest,
    svds,
)
from torch import nn

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    IdentityLinearOperator,
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)

from . import dense

N, C = 9, 3
X, Y = dense.normal(N, 4, seed=1), dense.normal(N, C, seed=2)
DATA = dense.batches(X, Y, [(0, 1, 2, 3), (4, 5), (6, 7, 8)])
MODEL = dense.Waves(4, (C,))
PARAMS = list(MODEL.parameters())
LOSS = nn.MSELoss()
P = sum(p.numel() for p in PARAMS)
Matrix = NDArray[numpy.float64]


@functools.cache
def curvop(name: str) -> Any:
    """A curvop operator."""
    if name in ("J", "JT"):
        kind = JacobianLinearOperator if name == "J" else TransposedJacobianLinearOperator
        return kind(MODEL, PARAMS, DATA)
    kinds = {"H": HessianLinearOperator, "G": GGNLinearOperator, "E": EFLinearOperator}
    return kinds[name](MODEL, LOSS, PARAMS, DATA)


@functools.cache
def truth(name: str) -> Any:
    """The same matrix by plain double backward."""
    if name in ("J", "JT"):
        J = dense.jacobian(MODEL, PARAMS, X)
        return J if name == "J" else J.T
    if name == "E":
        terms = nn.MSELoss(reduction="none")
        return dense.empirical_fisher(MODEL, LOSS, terms, PARAMS, X, Y)
    matrix = dense.hessian if name == "H" else dense.ggn
    return matrix(MODEL, LOSS, PARAMS, X, Y)


def identity() -> Any:
    return IdentityLinearOperator.like(curvop("G"))


def eye() -> torch.Tensor:
    return torch.eye(P, dtype=torch.float64)


# each: an expression of operators, and the same of dense matrices
EXPRESSIONS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "H": (lambda: curvop("H"), lambda: truth("H")),
    "G": (lambda: curvop("G"), lambda: truth("G")),
    "E": (lambda: curvop("E"), lambda: truth("E")),
    "-H": (lambda: -curvop("H"), lambda: -truth("H")),
    "G + E": (lambda: curvop("G") + curvop("E"), lambda: truth("G") + truth("E")),
    "H - G": (lambda: curvop("H") - curvop("G"), lambda: truth("H") - truth("G")),
    "G + λI": (
        lambda: curvop("G") + 0.1 * identity(),
        lambda: truth("G") + 0.1 * eye(),
    ),
    "E/2 + λI": (
        lambda: curvop("E") / 2 + identity(),
        lambda: truth("E") / 2 + eye(),
    ),
    "JᵀJ": (lambda: curvop("JT") @ curvop("J"), lambda: truth("JT") @ truth("J")),
    "J.T J": (lambda: curvop("J").T @ curvop("J"), lambda: truth("JT") @ truth("J")),
    "H[1:14, 1:14]": (
        lambda: curvop("H")[1:14, 1:14],
        lambda: truth("H")[1:14, 1:14],
    ),
    "G of a name": (
        lambda: curvop("G")["weight", "weight"],
        lambda: truth("G")[:12, :12],
    ),
    "J": (lambda: curvop("J"), lambda: truth("J")),
    "Jᵀ": (lambda: curvop("JT"), lambda: truth("JT")),
    "J.T": (lambda: curvop("J").T, lambda: truth("JT")),
    "J[rows]": (lambda: curvop("J")[::2, 1:], lambda: truth("J")[::2, 1:]),
    "H[rows]": (lambda: curvop("H")[:4], lambda: truth("H")[:4]),
    "J G": (lambda: curvop("J") @ curvop("G"), lambda: truth("J") @ truth("G")),
}
SYMMETRIC = list(EXPRESSIONS)[: list(EXPRESSIONS).index("J")]
DEFINITE = ["G + λI", "E/2 + λI"]
of_all = pytest.mark.parametrize("name", EXPRESSIONS)
of_symmetric = pytest.mark.parametrize("name", SYMMETRIC)
of_definite = pytest.mark.parametrize("name", DEFINITE)


def pair(name: str) -> tuple[LinearOperator, Matrix]:
    """An exported operator and the dense matrix."""
    operator, matrix = EXPRESSIONS[name]
    return operator().to_scipy(), matrix().numpy()


def normal(*shape: int) -> Matrix:
    return dense.normal(*shape, seed=7).numpy()


def error(x: Any, y: Any) -> float:
    """Largest difference, relative to the truth ``y``."""
    return float(numpy.abs(x - y).max() / numpy.abs(y).max())


# ------------------------------------------------------------------------ products


@of_all
def test_products(name: str) -> None:
    A, D = pair(name)
    M, n = D.shape
    assert A.shape == D.shape
    assert A.dtype == numpy.float64
    x, y, V, W = normal(n), normal(M), normal(n, 3), normal(M, 3)
    assert error(A @ x, D @ x) <= 1e-8
    assert error(A.matvec(x[:, None]), D @ x[:, None]) <= 1e-8
    assert error(A.rmatvec(y), D.T @ y) <= 1e-8
    assert error(A.matmat(V), D @ V) <= 1e-8
    assert error(A.rmatmat(W), D.T @ W) <= 1e-8
    assert error(A.T @ y, D.T @ y) <= 1e-8
    assert error(A.H @ W, D.T @ W) <= 1e-8
    assert error((2 * A + aslinearoperator(D)) @ x, 3 * D @ x) <= 1e-8
    assert error(A @ (x + 2j * x), D @ (x + 2j * x)) <= 1e-8
    assert error(A @ numpy.arange(n), D @ numpy.arange(n)) <= 1e-8


# ---------------------------------------------------------------------- eigenvalues


@of_symmetric
@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_eigsh(name: str, which: str) -> None:
    A, D = pair(name)
    values, vectors = eigsh(A, k=4, which=which, v0=normal(len(D)))
    w = numpy.linalg.eigvalsh(D)
    expected = {
        "LM": sorted(w, key=abs)[-4:],
        "LA": w[-4:],
        "SA": w[:4],
        "BE": [*w[:2], *w[-2:]],
    }[which]
    scale = numpy.abs(w).max()
    assert numpy.abs(numpy.sort(values) - numpy.sort(expected)).max() <= 1e-8 * scale
    assert numpy.abs(D @ vectors - vectors * values).max() <= 1e-8 * scale
    assert numpy.abs(vectors.T @ vectors - numpy.eye(4)).max() <= 1e-8


@pytest.mark.parametrize("name", ["H", "E"])
def test_generalised_eigsh(name: str) -> None:
    A, D = pair(name)
    _, B = pair("G + λI")
    values = eigsh(
        A,
        k=3,
        M=pair("G + λI")[0],
        Minv=aslinearoperator(numpy.linalg.inv(B)),
        which="LA",
        return_eigenvectors=False,
        v0=normal(P),
    )
    assert error(numpy.sort(values), scipy.linalg.eigvalsh(D, B)[-3:]) <= 1e-8


@of_symmetric
def test_lobpcg(name: str) -> None:
    A, D = pair(name)
    values, vectors = lobpcg(A, normal(len(D), 2), tol=1e-9, maxiter=400, largest=True)
    w = numpy.linalg.eigvalsh(D)
    scale = numpy.abs(w).max()
    assert numpy.abs(numpy.sort(values) - w[-2:]).max() <= 1e-8 * scale
    assert numpy.abs(D @ vectors - vectors * values).max() <= 1e-6 * scale


@of_all
def test_svds(name: str) -> None:
    A, D = pair(name)
    U, s, Vt = svds(A, k=3, v0=normal(min(D.shape)))
    expected = numpy.linalg.svd(D, compute_uv=False)[:3]
    assert error(numpy.sort(s)[::-1], expected) <= 1e-8
    assert error(D @ Vt.T, U * s) <= 1e-7


# ------------------------------------------------------------------------- systems


@of_definite
def test_cg(name: str) -> None:
    A, D = pair(name)
    b = normal(len(D))
    x, info = cg(A, b, rtol=1e-12)
    assert info == 0
    assert error(x, numpy.linalg.solve(D, b)) <= 1e-8


@of_definite
def test_preconditioned_cg(name: str) -> None:
    A, D = pair(name)
    b = normal(len(D))
    M = aslinearoperator(numpy.linalg.inv(D + 0.01 * numpy.eye(len(D))))
    steps: list[Any] = []
    x, info = cg(A, b, rtol=1e-12, M=M, callback=steps.append)
    assert info == 0
    assert len(steps) < len(D)
    assert error(x, numpy.linalg.solve(D, b)) <= 1e-8


@of_definite
@pytest.mark.parametrize("preconditioner", DEFINITE)
def test_curvature_as_preconditioner(name: str, preconditioner: str) -> None:
    """An exported operator in the other argument."""
    A, D = pair(name)
    M, _ = pair(preconditioner)
    b = normal(len(D))
    x, info = cg(A, b, rtol=1e-12, M=M, maxiter=1000)
    assert info == 0
    assert error(x, numpy.linalg.solve(D, b)) <= 1e-7


@of_symmetric
def test_minres(name: str) -> None:
    """Indefinite and singular systems, with a right-hand side in the range."""
    A, D = pair(name)
    solution = D @ normal(len(D))
    b = D @ solution
    x, info = minres(A, b, rtol=1e-13, maxiter=500)
    assert info == 0
    assert error(D @ x, b) <= 1e-8


@of_symmetric
def test_minres_with_a_shift(name: str) -> None:
    A, D = pair(name)
    b, shift = normal(len(D)), -20.0
    x, info = minres(A, b, shift=shift, rtol=1e-13)
    assert info == 0
    assert error(x, numpy.linalg.solve(D - shift * numpy.eye(len(D)), b)) <= 1e-8


@of_all
@pytest.mark.parametrize("solve", [lsmr, lsqr])
@pytest.mark.parametrize("damp", [0.0, 0.5])
def test_least_squares(name: str, solve: Any, damp: float) -> None:
    A, D = pair(name)
    M, n = D.shape
    b = normal(M)
    steps = {"iter_lim" if solve is lsqr else "maxiter": 500}
    x = solve(A, b, damp, atol=1e-14, btol=1e-14, conlim=0, **steps)[0]
    tall = numpy.vstack([D, damp * numpy.eye(n)])
    expected = numpy.linalg.lstsq(tall, numpy.append(b, numpy.zeros(n)), rcond=1e-10)[0]
    assert error(D @ x, D @ expected) <= 1e-6
    assert error(x, expected) <= 1e-6


# --------------------------------------------------------------------- other methods


@of_symmetric
def test_norm_estimate(name: str) -> None:
    """An estimate from below: the same for both, from the same random signs."""
    estimates = []
    for matrix in pair(name):
        numpy.random.seed(0)
        estimates.append(onenormest(matrix))
    assert error(*estimates) <= 1e-8


@pytest.mark.parametrize("name", ["H", "G + λI", "J.T J"])
def test_matrix_exponential(name: str) -> None:
    A, D = pair(name)
    b = normal(len(D))
    x = expm_multiply(-A, b, traceA=-numpy.trace(D))
    assert error(x, scipy.linalg.expm(-D) @ b) <= 1e-8


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_dtype_of_the_export(dtype: Any) -> None:
    """An operator in single precision, exported as it is and as double."""
    model = dense.Waves(4, (C,)).float()
    params = list(model.parameters())
    data = [(X.float(), Y.float())]
    G = GGNLinearOperator(model, LOSS, params, data)
    A = G.to_scipy(dtype=dtype)
    assert (A @ numpy.ones(P, dtype)).dtype == dtype
    values = eigsh(A, k=2, return_eigenvectors=False, v0=normal(P).astype(dtype))
    assert values.dtype == dtype
    w = numpy.linalg.eigvalsh(truth("G").numpy())
    assert error(numpy.sort(values), w[-2:]) <= 1e-5
