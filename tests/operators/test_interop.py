"""To and from NumPy and SciPy."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from curvop import (
    DenseLinearOperator,
    DiagonalLinearOperator,
    LinearOperator,
    as_operator,
    assume_psd,
    assume_symmetric,
)
from tests.comparing import error, random

D = random(3, 4)
d = D.numpy()


@pytest.mark.parametrize(
    "matrix",
    [
        D,
        D.T.contiguous().T,
        D.clone().requires_grad_(),
        d,
        d[::-1][::-1],
        numpy.asfortranarray(d),
        numpy.broadcast_to(d, (1, 3, 4))[0],
        scipy.sparse.csr_matrix(d),
        scipy.sparse.csc_array(d),
        scipy.sparse.coo_array(d),
        scipy.sparse.linalg.aslinearoperator(d),
        scipy.sparse.linalg.LinearOperator(
            (3, 4), matvec=lambda x: d @ x, rmatvec=lambda x: d.T @ x, dtype=d.dtype
        ),
        DenseLinearOperator(D),
    ],
    ids=lambda m: type(m).__name__,
)
def test_whatever_is_a_matrix(matrix: Any) -> None:
    A = as_operator(matrix)
    assert A.shape == (3, 4)
    assert A.dtype == torch.float64
    assert not A.symmetric
    assert error(A.to_dense(), D) <= 1e-14
    x, y = random(4, 2), random(3)
    assert error(A @ x, D @ x) <= 1e-14
    assert error(y @ A, D.T @ y) <= 1e-14
    assert error(A.to_scipy().rmatmat(y.numpy()[:, None]), D.T @ y[:, None]) <= 1e-14


def test_a_reversed_array() -> None:
    assert error(as_operator(d[::-1]).to_dense(), D.flip(0)) <= 1e-14


def test_ours_are_returned_as_they_are() -> None:
    A = DenseLinearOperator(D)
    assert as_operator(A) is A


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
def test_the_type_is_kept(dtype: type) -> None:
    for matrix in (d.astype(dtype), scipy.sparse.csr_array(d.astype(dtype))):
        A = as_operator(matrix)
        assert A.dtype == (torch.float32 if dtype == numpy.float32 else torch.float64)
        assert (A @ torch.ones(4, dtype=A.dtype)).dtype == A.dtype


@pytest.mark.parametrize(
    ("matrix", "kind", "message"),
    [
        (numpy.eye(2, dtype=int), TypeError, r"got int64.*astype\(float\)"),
        (numpy.eye(2, dtype=complex), TypeError, "complex128"),
        (scipy.sparse.eye_array(2, dtype=int), TypeError, "int64"),
        (scipy.sparse.eye_array(2, dtype=complex), TypeError, "complex128"),
        (torch.eye(2, dtype=torch.int64), TypeError, "int64"),
        (torch.tensor([[1, 2], [3, 4]]), TypeError, "int64"),
        (numpy.ones(2), ValueError, "2 dimensions"),
        (torch.ones(2), ValueError, "2 dimensions"),
        ([[1.0]], TypeError, "got list"),
        (3.0, TypeError, "got float"),
    ],
)
def test_refusals(matrix: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        as_operator(matrix)


# ------------------------------------------------------------------------ tags


@pytest.mark.parametrize(("assume", "psd"), [(assume_symmetric, False), (assume_psd, True)])
def test_assumed_tags(assume: Any, psd: bool) -> None:
    S = scipy.sparse.csr_array((d.T @ d).astype(float))
    A = assume(S)
    assert A.symmetric
    assert A.psd == psd
    assert A.T is A
    assert error(A.to_dense(), D.T @ D) <= 1e-14
    assert assume(A) is A
    with pytest.raises(ValueError, match="square"):
        assume(D)


def test_assumed_tags_keep_blocks_and_names() -> None:
    B = DiagonalLinearOperator(
        [torch.tensor([1.0]), torch.tensor([-1.0])], names=["a", "b"]
    )
    A = assume_psd(B)
    assert A.psd
    assert A.domain_names == ("a", "b")
    assert list(A @ {"a": torch.ones(1), "b": torch.ones(1)}) == ["a", "b"]


def test_symmetric_by_assumption_may_be_psd_by_another() -> None:
    A = assume_psd(assume_symmetric(DenseLinearOperator(torch.ones(2, 2))))
    assert A.psd


# ---------------------------------------------------------------------- export


@pytest.fixture
def A() -> LinearOperator:
    return DenseLinearOperator(D)


@pytest.mark.parametrize(
    "dtype", [numpy.int8, numpy.int32, numpy.uint8, numpy.uint32, numpy.int64, bool]
)
def test_integers_are_promoted(A: LinearOperator, dtype: type) -> None:
    x = numpy.array([0, 1, 1, 0], dtype=dtype)
    y = A.to_scipy() @ x
    assert y.dtype == numpy.float64
    assert error(y, d @ x.astype(float)) <= 1e-14
    X = numpy.stack([x, x], 1)
    assert error(A.to_scipy() @ X, d @ X.astype(float)) <= 1e-14


def test_lists_are_vectors(A: LinearOperator) -> None:
    assert error(A.to_scipy() @ [1, 2, 3, 4], d @ numpy.arange(1, 5)) <= 1e-14


def test_arrays_of_any_strides_and_without_write_permission(A: LinearOperator) -> None:
    X = random(2, 8).numpy()
    X.flags.writeable = False
    for x in (X[0, :4], X[0, ::2], X[0, 7:3:-1], X[:, ::2].T, X[:, :4].T[:, ::-1]):
        assert error(A.to_scipy() @ x, d @ x) <= 1e-14


@pytest.mark.parametrize("dtype", [numpy.complex64, numpy.complex128])
def test_complex_is_exact(A: LinearOperator, dtype: type) -> None:
    z = (random(4, 2).numpy() + 1j * random(4, 2, seed=1).numpy()).astype(dtype)
    y = A.to_scipy() @ z
    assert y.dtype == numpy.complex128
    assert error(y.real, d @ z.real) <= 1e-14
    assert error(y.imag, d @ z.imag) <= 1e-14


def test_the_type_can_be_chosen(A: LinearOperator) -> None:
    narrow = A.to_scipy(dtype=numpy.float32)
    assert narrow.dtype == numpy.float32
    assert (narrow @ numpy.ones(4)).dtype == numpy.float32
    assert (A.to_scipy(dtype=complex) @ numpy.ones(4)).dtype == numpy.complex128


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_travels_as_single(dtype: torch.dtype) -> None:
    A = DenseLinearOperator(torch.tensor([[1.0, 2.0]], dtype=dtype)).to_scipy()
    assert A.dtype == numpy.float32
    assert (A @ numpy.ones(2)).tolist() == [3.0]
    assert (A @ numpy.array([1j, 1.0])).tolist() == [2.0 + 1.0j]


def test_arithmetic_of_scipy(A: LinearOperator) -> None:
    exported = (2 * A.to_scipy() + A.to_scipy()).T
    y = random(3).numpy()
    assert error(exported @ y, 3 * d.T @ y) <= 1e-14


def test_solvers_run_on_derived_operators() -> None:
    G = DenseLinearOperator(D.T @ D) + 0.5 * torch.eye(4, dtype=torch.float64)
    b = random(4).numpy()
    x, info = scipy.sparse.linalg.cg(G.to_scipy(), b, rtol=1e-12)
    assert info == 0
    assert error(x, numpy.linalg.solve(G.to_dense().numpy(), b)) <= 1e-9
    top = scipy.sparse.linalg.svds(DenseLinearOperator(D)[:, 1:].to_scipy(), k=1)[1]
    assert error(top, torch.linalg.svdvals(D[:, 1:])[:1]) <= 1e-9
