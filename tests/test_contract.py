"""The contract: every case goes through everything that an operator promises."""

from __future__ import annotations

import inspect

import numpy
import pytest
import torch
from torch import Tensor

import curvop
from curvop import (
    DiagonalLinearOperator,
    LinearizedLinearOperator,
    LinearOperator,
)
from tests.cases import CASES, Case
from tests.cases.truth import block_diagonal
from tests.comparing import TOLERANCE, error, joined, random, split

SIDES = ("right", "left")

every_case = pytest.mark.parametrize("case", CASES, ids=str)
# what vectors look like is dealt with before anything is computed: once per operator
every_operator = pytest.mark.parametrize(
    "case", [case for case in CASES if case.variant_of is None], ids=str
)
# recording a product once more takes longer than all other tests of it
in_single_precision = [
    case
    for case in CASES
    if case.variant_of is None
    or case.kind is not LinearizedLinearOperator
    or "jacobian" in str(case)
]


def cases_with(option: str) -> pytest.MarkDecorator:
    """Parametrise over the cases whose operator takes an option."""
    found = [case for case in CASES if option in case.options]
    return pytest.mark.parametrize("case", found, ids=str)


def sides(case: Case) -> list[tuple[str, tuple[torch.Size, ...], Tensor]]:
    """For each side: its name, the block shapes of ``x``, and ``D`` in ``D x``."""
    A, D = case.operator(), case.truth()
    return [("right", A.domain, D), ("left", A.codomain, D.T)]


def multiply(A: LinearOperator, x: object, side: str) -> object:
    """``A @ x`` or ``x @ A``."""
    return A @ x if side == "right" else x @ A


def columns(x: Tensor, side: str) -> Tensor:
    """``[N, K]`` as the side wants it: from the left, ``K`` leads."""
    return x if side == "right" or x.ndim == 1 else x.T


# ------------------------------------------------------------------ what it is


def test_every_public_operator_has_a_case() -> None:
    public = {getattr(curvop, name) for name in curvop.__all__}
    operators = {
        c
        for c in public
        if inspect.isclass(c)
        and issubclass(c, LinearOperator)
        and not inspect.isabstract(c)
    }
    missing = operators - {case.kind for case in CASES}
    assert not missing, f"Add a case to tests/cases for {missing}."


def test_cases_have_names_and_variants_have_originals() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    originals = {case.name for case in CASES if case.variant_of is None}
    assert {case.variant_of for case in CASES} - {None} <= originals


@every_operator
def test_is_what_it_says(case: Case) -> None:
    A, D = case.operator(), case.truth()
    assert type(A) is case.kind
    assert A.shape == tuple(D.shape)
    assert A.shape == tuple(
        sum(s.numel() for s in shapes) for shapes in (A.codomain, A.domain)
    )
    assert A.ndim == 2
    assert A.dtype == torch.float64
    assert A.device == torch.device("cpu")
    assert type(A).__name__ in repr(A)
    for names, shapes in (
        (A.domain_names, A.domain),
        (A.codomain_names, A.codomain),
    ):
        assert names is None or len(names) == len(shapes)


# -------------------------------------------------------------------- products


@every_case
def test_vector(case: Case) -> None:
    for side, _, D in sides(case):
        x = random(D.shape[1])
        y = multiply(case.operator(), x, side)
        assert y.dtype == torch.float64
        assert not y.requires_grad
        assert error(y, D @ x) <= TOLERANCE


@every_case
def test_matrix(case: Case) -> None:
    for side, _, D in sides(case):
        X = random(D.shape[1], 3)
        Y = multiply(case.operator(), columns(X, side), side)
        assert error(columns(Y, side), D @ X) <= TOLERANCE


@every_operator
def test_matrix_of_no_columns(case: Case) -> None:
    A = case.operator()
    M, N = A.shape
    assert (A @ torch.zeros(N, 0, dtype=A.dtype)).shape == (M, 0)
    assert (torch.zeros(0, M, dtype=A.dtype) @ A).shape == (0, N)
    blocks = A @ [torch.zeros(*s, 0, dtype=A.dtype) for s in A.domain]
    assert [b.shape for b in blocks] == [(*s, 0) for s in A.codomain]


@every_operator
def test_blocks(case: Case) -> None:
    A = case.operator()
    for side, shapes, D in sides(case):
        out = A.codomain if side == "right" else A.domain
        N = D.shape[1]
        for form, X in ((tuple, random(N)), (list, random(N, 2))):
            x = form(split(columns(X, side), shapes, side))
            y = multiply(A, x, side)
            assert type(y) is form
            got = columns(joined(list(y), out, side), side)
            assert error(got, D @ X) <= TOLERANCE


@every_operator
def test_dict(case: Case) -> None:
    A = case.operator()
    for side, shapes, D in sides(case):
        names, out, out_names = A.domain_names, A.codomain, A.codomain_names
        if side == "left":
            names, out, out_names = A.codomain_names, A.domain, A.domain_names
        X = random(D.shape[1], 2)
        blocks = split(columns(X, side), shapes, side)
        if names is None:
            with pytest.raises(TypeError, match="no names"):
                multiply(A, {str(i): b for i, b in enumerate(blocks)}, side)
            continue
        # the order of the keys plays no role
        y = multiply(A, dict(reversed(list(zip(names, blocks, strict=True)))), side)
        if out_names is None:  # nothing to name the answer by
            assert type(y) is list
            parts = y
        else:
            assert tuple(y) == out_names
            parts = list(y.values())
        got = columns(joined(parts, out, side), side)
        assert error(got, D @ X) <= TOLERANCE


@every_operator
def test_integers_are_promoted_and_complex_is_exact(case: Case) -> None:
    A, D = case.operator(), case.truth()
    n = torch.arange(-2, A.shape[1] - 2)
    y = A @ n
    assert y.dtype == A.dtype
    assert error(y, D @ n.double()) <= TOLERANCE
    z = torch.complex(random(A.shape[1]), random(A.shape[1], seed=1))
    Az = A @ z
    assert error(Az.real, D @ z.real) <= TOLERANCE
    assert error(Az.imag, D @ z.imag) <= TOLERANCE


@every_case
def test_to_dense(case: Case) -> None:
    assert error(case.as_dense(), case.truth()) <= TOLERANCE


# ------------------------------------------------------------------------ laws


@every_case
def test_transpose(case: Case) -> None:
    A, D = case.operator(), case.truth()
    assert A.T.shape == tuple(D.T.shape)
    assert A.T.domain == A.codomain
    assert A.T.codomain == A.domain
    assert (A.T.symmetric, A.T.psd) == (A.symmetric, A.psd)
    u = random(A.shape[0])
    for B in (A.T, A.adjoint()):
        assert error(B @ u, D.T @ u) <= TOLERANCE
    v = random(A.shape[1])
    assert error(A.T.T @ v, D @ v) <= TOLERANCE


@every_case
def test_dot_test(case: Case) -> None:
    A = case.operator()
    u, v = random(A.shape[0], seed=3), random(A.shape[1], seed=4)
    Av, uA = A @ v, u @ A
    gap = abs(float(u @ Av - uA @ v))
    assert gap <= TOLERANCE * (float(u.norm() * Av.norm()) or 1.0)


@every_case
def test_linearity(case: Case) -> None:
    A = case.operator()
    x, y = random(A.shape[1], seed=5), random(A.shape[1], seed=6)
    together = A @ (2.5 * x - 1e3 * y)
    assert error(together, 2.5 * (A @ x) - 1e3 * (A @ y)) <= TOLERANCE


@every_case
def test_tags_are_true(case: Case) -> None:
    A, D = case.operator(), case.as_dense()
    assert A.symmetric or not A.psd
    if A.symmetric:
        assert A.T is A
        assert error(D.T, D) <= 1e-13
    if A.psd:
        eps = torch.finfo(D.dtype).eps * len(D) * float(D.norm())
        assert float(torch.linalg.eigvalsh(D).min()) >= -eps


# ------------------------------------------------------------------ submatrices


@every_operator
def test_submatrix(case: Case) -> None:
    A, D = case.operator(), case.truth()
    M, N = A.shape
    mask = torch.arange(N) % 3 != 1
    some = [M - 1, 0, -1]  # out of order, one of them twice
    for rows, cols in [
        (slice(M // 2, None), mask),
        (some, slice(1, None, 2)),
        (torch.tensor(some), numpy.array([0, N - 1])),
    ]:
        S = A[rows, cols]
        expected = D[rows][:, torch.arange(N)[cols]]
        assert S.shape == tuple(expected.shape)
        x = random(S.shape[1])
        assert error(S @ x, expected @ x) <= TOLERANCE
    y = random(S.shape[0])
    assert error(y @ S, expected.T @ y) <= TOLERANCE


@every_operator
def test_rows_columns_and_entries(case: Case) -> None:
    A, D = case.operator(), case.truth()
    assert error(A[:, -1], D[:, -1]) <= TOLERANCE
    assert error(A[0], D[0]) <= TOLERANCE
    entry = A[-1, 0]
    assert entry.ndim == 0
    scale = float(D.abs().max()) or 1.0
    assert abs(float(entry - D[-1, 0])) <= TOLERANCE * scale


@every_operator
def test_submatrix_by_name(case: Case) -> None:
    A, D = case.operator(), case.truth()
    if A.domain_names is None:
        with pytest.raises(ValueError, match="no names"):
            A[:, "weight"]
        return
    ends = numpy.cumsum([s.numel() for s in A.domain])
    at = {
        name: list(range(e - s.numel(), e))
        for name, s, e in zip(A.domain_names, A.domain, ends, strict=True)
    }
    first, last = A.domain_names[0], A.domain_names[-1]
    x = random(len(at[first]))
    assert error(A[:, first] @ x, D[:, at[first]] @ x) <= TOLERANCE
    both = at[last] + at[first]
    x = random(len(both), 2)
    assert error(A[:, [last, first]] @ x, D[:, both] @ x) <= TOLERANCE
    if A.codomain_names == A.domain_names:
        block = A[first, first]
        assert (block.symmetric, block.psd) == (A.symmetric, A.psd)
        x = random(len(at[first]))
        truth = D[at[first]][:, at[first]]
        assert error(block @ x, truth @ x) <= TOLERANCE


# --------------------------------------------------------------------- algebra


@every_operator
def test_sums_and_multiples(case: Case) -> None:
    A, D = case.operator(), case.truth()
    x, E = random(A.shape[1]), random(*A.shape, seed=8)
    for B, truth in [
        (A + E, D + E),
        (A - E, D - E),
        (-A / 4, -D / 4),
        (3 * A, 3 * D),
    ]:
        assert error(B @ x, truth @ x) <= TOLERANCE
        assert B.domain == A.domain
        assert B.symmetric <= A.symmetric


@every_operator
def test_products(case: Case) -> None:
    A, D = case.operator(), case.truth()
    M, N = A.shape
    x = random(N)
    gram = A.T @ A
    assert error(gram @ x, D.T @ (D @ x)) <= TOLERANCE
    S = DiagonalLinearOperator(split(random(M, seed=9), A.codomain, "right"))
    u = random(M)
    scaled = S @ A
    assert error(scaled @ x, (S @ torch.eye(M).double()) @ (D @ x)) <= TOLERANCE
    assert error(u @ scaled, D.T @ (S @ u)) <= TOLERANCE
    sandwich = A.T @ S @ A
    assert sandwich.symmetric
    assert error(sandwich @ x, D.T @ (S @ (D @ x))) <= TOLERANCE


# ----------------------------------------------------------------------- SciPy


@every_operator
def test_scipy_products(case: Case) -> None:
    A, D = case.operator().to_scipy(), case.truth().numpy()
    M, N = D.shape
    assert A.shape == (M, N)
    assert A.dtype == numpy.float64
    x, u = random(N).numpy(), random(M).numpy()
    X, U = random(N, 2).numpy(), random(M, 2).numpy()
    assert error(A.matvec(x), D @ x) <= TOLERANCE
    assert error(A.rmatvec(u), D.T @ u) <= TOLERANCE
    assert error(A.matmat(X), D @ X) <= TOLERANCE
    assert error(A.rmatmat(U), D.T @ U) <= TOLERANCE
    assert error(A.H @ u, D.T @ u) <= TOLERANCE


@every_operator
def test_scipy_promotes_integers_and_is_exact_for_complex(case: Case) -> None:
    A, D = case.operator().to_scipy(), case.truth().numpy()
    M, N = D.shape
    n = numpy.arange(-2, N - 2)
    for integers in (n, n.astype(numpy.int32)):
        y = A @ integers
        assert y.dtype == numpy.float64
        assert error(y, D @ integers) <= TOLERANCE
    z = random(N).numpy() + 1j * random(N, seed=1).numpy()
    w = random(M).numpy() + 1j * random(M, seed=1).numpy()
    for got, expected in [
        (A.matmat(z[:, None]), D @ z[:, None]),
        (A.rmatvec(w), D.T @ w),
    ]:
        assert error(got.real, expected.real) <= TOLERANCE
        assert error(got.imag, expected.imag) <= TOLERANCE


@every_operator
def test_transposes_sums_and_submatrices_export(case: Case) -> None:
    A, D = case.operator(), case.truth()
    x, u = random(A.shape[1]).numpy(), random(A.shape[0]).numpy()
    for B, truth, v in [
        (A.T, D.T, u),
        (A + D, 2 * D, x),
        (A.T @ A, D.T @ D, x),
        (A[1:, :], D[1:, :], x),
    ]:
        assert error(B.to_scipy() @ v, truth.numpy() @ v) <= TOLERANCE


# --------------------------------------------------------------------- options


@cases_with("chunk_size")
def test_chunk_sizes_agree(case: Case) -> None:
    D = case.truth()
    X = random(D.shape[1], 4)
    for chunk_size in (1, 3, None, "auto"):
        A = case.operator(chunk_size=chunk_size, **case.unchecked)
        assert error(A @ X, D @ X) <= TOLERANCE


@cases_with("block_sizes")
def test_block_sizes(case: Case) -> None:
    sizes = [s.numel() for s in case.operator().domain]
    n = len(sizes)
    x = random(sum(sizes))
    for block_sizes in {(1,) * n, (n - n // 2, n // 2)}:
        A = case.operator(block_sizes=list(block_sizes), **case.unchecked)
        ends = numpy.cumsum(block_sizes)
        parts = [sum(sizes[e - s : e]) for s, e in zip(block_sizes, ends, strict=True)]
        D = block_diagonal(case.truth(), parts)
        assert A.shape == tuple(D.shape)
        assert (A.symmetric, A.psd) == (case.operator().symmetric, case.operator().psd)
        assert error(A @ x, D @ x) <= TOLERANCE


@pytest.mark.parametrize("case", in_single_precision, ids=str)
def test_single_precision(case: Case) -> None:
    A, D = case.build(torch.float32, **case.unchecked), case.truth()
    assert A.dtype == torch.float32
    eps = torch.finfo(torch.float32).eps
    x, u = random(A.shape[1]), random(A.shape[0])
    Ax, uA = A @ x.float(), u.float() @ A
    assert Ax.dtype == uA.dtype == torch.float32
    assert error(Ax, D @ x) <= 100 * eps
    assert error(uA, D.T @ u) <= 100 * eps
    exported = A.to_scipy()
    assert exported.dtype == numpy.float32
    assert (exported @ x.numpy()).dtype == numpy.float32
    wide = A.to_scipy(dtype=numpy.float64)
    assert (wide @ x.numpy()).dtype == numpy.float64
    with pytest.raises(TypeError, match=r"float32.*float64"):
        A @ x
