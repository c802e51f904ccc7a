"""What cannot be right is an error that says how to mend it."""

from __future__ import annotations

import pytest
import scipy.sparse
import torch

from curvop import DenseLinearOperator, DiagonalLinearOperator, assume_psd, assume_symmetric
from curvop.spectra import eigsh
from tests.comparing import random
from tests.spectra.matrices import SPECTRA, Watched, linspace, symmetric

A = symmetric(linspace(-1, 2, 30))
P = DiagonalLinearOperator(linspace(1, 2, 30))


@pytest.mark.parametrize(
    ("k", "options", "kind", "message"),
    [
        (31, {}, ValueError, "1 <= k <= 30, got 31"),
        (0, {}, ValueError, "1 <= k"),
        (2.0, {}, TypeError, "integer k, got float"),
        (True, {}, TypeError, "integer k"),
        (2, {"tol": -1e-3}, ValueError, "0 <= tol < 1"),
        (2, {"tol": float("nan")}, ValueError, "0 <= tol < 1"),
        (2, {"tol": "small"}, TypeError, "number as tol"),
        (2, {"which": "LR"}, ValueError, "LA, SA, LM, SM or BE"),
        (2, {"which": "SM"}, ValueError, "MINRESInverseLinearOperator"),
        (2, {"inverse": A}, ValueError, "which='SM'"),
        (2, {"inverse": A, "P": P, "which": "SM"}, ValueError, "P or inverse"),
        (2, {"ncv": 3}, ValueError, "at least k \\+ 2 block_size, here 4"),
        (2, {"ncv": 31}, ValueError, "ncv <= 30"),
        (2, {"block_size": 0}, ValueError, "block_size"),
        (2, {"maxiter": 0}, ValueError, "maxiter"),
        (2, {"method": "arnoldi"}, ValueError, "'lanczos' or 'lobpcg'"),
        (2, {"M": P}, ValueError, "preconditioner"),
        (2, {"P": A}, ValueError, "DiagonalLinearOperator.*lobpcg"),
        (2, {"P": DiagonalLinearOperator(linspace(0, 1, 30))}, ValueError, "damping"),
        (2, {"P": torch.eye(4).double()}, ValueError, "P of shape"),
        (2, {"P": torch.eye(30)}, TypeError, "P of dtype torch.float64"),
        (2, {"P": random(30, 30)}, ValueError, "symmetric P.*assume_symmetric"),
        (2, {"v0": [1.0] * 30}, TypeError, "v0 as a tensor, got list"),
        (2, {"v0": torch.ones(29).double()}, ValueError, r"v0 of shape \(30,\)"),
        (2, {"v0": torch.ones(30)}, TypeError, "v0 of dtype torch.float64"),
        (2, {"v0": torch.zeros(30).double()}, ValueError, "not zero"),
        (2, {"v0": torch.full((30,), torch.inf).double()}, ValueError, "finite start"),
        (2, {"generator": 0}, TypeError, "manual_seed"),
    ],
)
def test_arguments(k, options, kind, message):
    with pytest.raises(kind, match=message):
        eigsh(A, k, **options)


def test_the_tag_is_needed():
    for B in (random(5, 5), scipy.sparse.eye(5, format="csr")):
        with pytest.raises(ValueError, match="assume_symmetric"):
            eigsh(B, 1)
    with pytest.raises(ValueError, match=r"square.*svds"):
        eigsh(random(5, 4), 1)
    with pytest.raises(TypeError, match="operator"):
        eigsh("A", 1)


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_a_wrong_tag_is_seen(size):
    skew = random(200, 200)
    B = symmetric(linspace(-1, 2, 200)) + size * (skew - skew.T)
    lying = assume_symmetric(DenseLinearOperator(B).to_scipy())
    with pytest.raises(
        ValueError, match=r"not?.*symmetric|symmetric matrix.*rightly tagged"
    ):
        eigsh(lying, 3)


def test_a_matrix_that_changes_is_seen():
    class Changing(Watched):
        def _matmat(self, M):
            (AM,) = super()._matmat(M)
            return [AM * (1 + 1e-3 * self.seen[0])]

    with pytest.raises(ValueError, match="the same at every product"):
        eigsh(Changing(symmetric(SPECTRA["60 negative"])), 3)


@pytest.mark.parametrize("value", ["NaN", "infinity"])
@pytest.mark.parametrize("method", ["lanczos", "lobpcg"])
def test_what_is_not_finite_is_named_with_the_product(value, method):
    class Failing(Watched):
        def _matmat(self, M):
            (AM,) = super()._matmat(M)
            if self.seen[0] == 10:
                AM[3, 0] = torch.nan if value == "NaN" else torch.inf
            return [AM]

    with pytest.raises(ValueError, match=f"{value} at product (10|9)"):
        eigsh(Failing(symmetric(SPECTRA["60 negative"])), 2, which="LA", method=method)


def test_svds_points_and_psd_hints_work():
    assert eigsh(assume_psd(A + 2 * torch.eye(30).double()), 1, which="SM").values > 0
