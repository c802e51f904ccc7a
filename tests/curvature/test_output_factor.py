"""Columns in the space of predictions: their outer products are what they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop.curvature.output_factor import Kind, OutputFactor, outer_products, output_factor
from curvop.risk import nested
from curvop.risk.losses import as_loss

from . import dense
from .loss_cases import CASES, LossCase, N, X

# torch announces that the mean of kl_div will change
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")


def predicted(case: LossCase) -> Any:
    with torch.no_grad():
        return case.model.double()(X)


def factor_of(case: LossCase, kind: Kind, **options: Any) -> OutputFactor:
    loss = as_loss(case.loss, case.reduction)
    f = predicted(case)
    return output_factor(loss, f, case.y, num_data=N, kind=kind, X=X, **options)


def data_leading(blocks: list[Tensor]) -> Tensor:
    """``[R, *m_i]`` as ``[R, N, m]``."""
    return torch.cat([b.reshape(len(b), N, b.shape[1:].numel() // N) for b in blocks], 2)


def hessian_blocks(case: LossCase) -> Tensor:
    """``∇²_f`` of the summed loss for each datum, ``[N, m, m]``, by double backward."""
    f = predicted(case)
    leaves = [t.requires_grad_() for t in nested.differentiable(f)]
    loss = as_loss(case.loss, case.reduction)
    Z = 1.0 if loss.reduction == "sum" else float(loss.divisor(f, case.y))
    (gradient,) = dense.rows(case.scalar(nested.refill(f, leaves), case.y)[None], leaves)
    H = dense.rows(gradient, leaves).detach() * Z
    # the entries of datum n, whatever the tensors they lie in
    sizes = [t.numel() for t in leaves]
    parts = torch.arange(sum(sizes)).split(sizes)
    index = torch.cat([p.reshape(N, -1) for p in parts], 1)
    return torch.stack([H[i][:, i] for i in index])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outer_products_are_the_hessian_of_the_loss(case: LossCase) -> None:
    H = hessian_blocks(case)
    least = float(torch.linalg.eigvalsh(H).min())
    if least < -1e-10 * float(H.abs().max()):
        with pytest.raises(ValueError, match="not convex"):
            factor_of(case, "type-2")
        return
    factor = factor_of(case, "type-2").blocks(slice(None))
    for blocks in (factor, factor_of(case, "type-2", fewest=True).blocks(slice(None))):
        S = data_leading(blocks)
        got = torch.einsum("rni,rnj->nij", S, S)
        assert float((got - H).abs().max()) <= 1e-12 * max(1.0, float(H.abs().max()))
    some = factor_of(case, "type-2").blocks(slice(1, 3))
    assert all(torch.equal(a, b[1:3]) for a, b in zip(some, factor, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outer_products_are_those_of_the_gradients(case: LossCase) -> None:
    if case.terms is None:
        with pytest.raises(TypeError, match="unreduced terms"):
            factor_of(case, "empirical")
        return
    f = predicted(case)
    leaves = [t.requires_grad_() for t in nested.differentiable(f)]
    terms = case.terms(nested.refill(f, leaves), case.y).reshape(N, -1)
    G = dense.rows(terms, leaves).detach().reshape(*terms.shape, -1)  # [N, T, outputs]
    S = factor_of(case, "empirical", per="term")
    for whole, columns in ((G, S.blocks(slice(None))), (G.sum(1, True), None)):
        columns = columns or factor_of(case, "empirical", per="example").blocks(slice(None))
        flat = torch.cat([c.flatten(1) for c in columns], 1)
        assert torch.allclose(whole.sum(0), flat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", ["[N, C]", "[N, C, T]"])
def test_columns_together_carry_every_term(shape: str) -> None:
    f = dense.normal(N, 3) if shape == "[N, C]" else dense.normal(N, 3, 4)
    y = dense.integers(3, *f.shape[:1], *f.shape[2:])
    S = output_factor(as_loss(nn.CrossEntropyLoss()), f, y, num_data=N)
    T = f[0, 0].numel()
    assert (S.num_columns, S.num_together) == (3 * T, 3)
    apart = S.columns(slice(None)).reshape(T, 3, *f.shape)
    assert torch.allclose(apart.sum(0), S.columns(slice(None), together=True))


def test_elementwise_columns_together_keep_the_last_axis_apart() -> None:
    f, y = dense.normal(N, 2, 3), dense.normal(N, 2, 3, seed=1)
    S = output_factor(as_loss(nn.MSELoss()), f, y, num_data=N)
    assert (S.num_columns, S.num_together) == (6, 3)
    apart = S.columns(slice(None)).reshape(2, 3, *f.shape)
    assert torch.allclose(apart.sum(0), S.columns(slice(None), together=True))


@pytest.mark.parametrize("C", [1, 2, 5])
def test_fewest_columns_are_as_many_as_the_rank(C: int) -> None:
    f, y = dense.normal(N, C, 2), dense.integers(C, N, 2)
    loss = as_loss(nn.CrossEntropyLoss())
    S, R = (
        output_factor(loss, f, y, num_data=N, fewest=fewest) for fewest in (False, True)
    )
    assert (R.num_columns, R.num_together) == (2 * (C - 1), C - 1)
    for together in (False, True):
        s, r = (data_leading(list(A.blocks(slice(None), together))) for A in (S, R))
        products = [torch.einsum("rni,rnj->nij", t, t) for t in (s, r)]
        if together:  # entries between terms depend on the factor
            products = [torch.stack([p[:, ::2, ::2], p[:, 1::2, 1::2]]) for p in products]
        assert torch.allclose(*products, atol=1e-14)


def test_several_rows_of_the_prediction_belong_to_a_datum() -> None:
    f, y = dense.normal(2 * N, 3), dense.integers(3, 2 * N)
    loss = as_loss(nn.CrossEntropyLoss())
    S = output_factor(loss, f, y, num_data=N)
    assert S.num_columns == 6
    flat = output_factor(loss, f, y, num_data=2 * N).columns(slice(None))
    both = S.columns(slice(None)).reshape(2, 3, *f.shape).sum(0)
    assert torch.allclose(both, flat)


def test_outer_products_multiply() -> None:
    S, U = (
        [dense.normal(4, N, 3), dense.normal(4, N)],
        [
            dense.normal(2, N, 3, seed=1),
            dense.normal(2, N, seed=2),
        ],
    )
    s, u = data_leading(S), data_leading(U)
    expected = torch.einsum("rni,rnj,knj->kni", s, s, u)
    assert torch.allclose(data_leading(outer_products(S, U, N)), expected)


def test_no_batch_axis() -> None:
    loss = as_loss(nn.MSELoss())
    with pytest.raises(ValueError, match="leading axis"):
        output_factor(loss, torch.zeros(5), torch.zeros(5), num_data=2)
    with pytest.raises(ValueError, match="leading axis"):
        output_factor(loss, torch.zeros(()), torch.zeros(()), num_data=2)


def test_columns_need_one_tensor() -> None:
    case = next(c for c in CASES if isinstance(predicted(c), tuple) and c.terms)
    with pytest.raises(ValueError, match="one tensor"):
        factor_of(case, "empirical").columns(slice(None))


def test_cross_entropy_never_allocates_a_matrix_for_each_datum() -> None:
    C = 20_000
    f, y = torch.zeros(8, C), torch.zeros(8, dtype=torch.long)
    S = output_factor(as_loss(nn.CrossEntropyLoss()), f, y, num_data=8)
    assert S.num_columns == C
    assert S.columns(slice(0, 2)).shape == (2, 8, C)  # 8 C² would be 13 GB
