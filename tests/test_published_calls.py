"""Calls as they were published, each against a dense matrix by central differences."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor, nn

from curvop import as_operator, eigsh
from curvop.functional import (
    approximate_hvp,
    gauss_newton_product,
    hessian_row_sum,
    hessian_trace,
)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
loss_fn = nn.CrossEntropyLoss()
x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
params = list(model.parameters())
P = sum(p.numel() for p in params)


def func() -> Tensor:
    value: Tensor = loss_fn(model(x), y)
    return value


def flat(blocks: list[Tensor]) -> Tensor:
    return torch.cat([b.reshape(-1) for b in blocks])


def gradient() -> Tensor:
    return flat(list(torch.autograd.grad(func(), params)))


def slopes(f, step: float = 1e-5) -> Tensor:
    """``∂f/∂θ``, one column a parameter, by central differences; good to 1e-9."""
    columns = []
    for p in params:
        entries = p.data.view(-1)
        for i in range(len(entries)):
            kept = entries[i].item()
            entries[i] = kept + step
            ahead = f()
            entries[i] = kept - step
            behind = f()
            entries[i] = kept
            columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, -1).detach()


def v_of(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in params]


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.detach() - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def H() -> Tensor:
    return slopes(gradient)


@pytest.fixture(scope="module")
def G() -> Tensor:
    """``Jᵀ B J``, the Hessian of the loss ``B`` by differences as well."""
    J = slopes(lambda: model(x).detach().reshape(-1))
    f = model(x).detach()

    def slope(at: Tensor) -> Tensor:
        leaf = at.reshape(f.shape).requires_grad_()
        return torch.autograd.grad(loss_fn(leaf, y), leaf)[0].reshape(-1)

    unit = torch.eye(f.numel(), dtype=f.dtype) * 1e-5
    at = f.reshape(-1)
    B = torch.stack([(slope(at + e) - slope(at - e)) / 2e-5 for e in unit])
    return J.T @ B @ J


def test_the_worked_example_of_row_sums():
    # f = x² + 2 x² y - 3 y³ at (1, 2): H = [[2 + 4 y, 4 x], [4 x, -18 y]]
    t = torch.tensor([1.0, 2.0], requires_grad=True)
    f = t[0] ** 2 + 2 * t[0] ** 2 * t[1] - 3 * t[1] ** 3
    assert torch.equal(hessian_row_sum(f, [t]), torch.tensor([14.0, -32.0]))


def test_hessian_row_sum(H):
    loss = loss_fn(model(x), y)
    sums = hessian_row_sum(loss, list(model.parameters()))
    assert sums.shape == (P,)
    assert error(sums, H.sum(1)) < 1e-7
    assert error(hessian_row_sum(func, list(model.parameters())), H.sum(1)) < 1e-7
    blocks = hessian_row_sum(loss, dict(model.named_parameters()), blocks=True)
    assert {n: b.shape for n, b in blocks.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert error(flat(list(blocks.values())), H.sum(1)) < 1e-7


def test_approximate_hvp(H):
    v = v_of(0)
    for arguments in ((), (4,), (1, 0.5), (4, 0.5)):
        Hv = approximate_hvp(func, params, v, *arguments)
        damping = arguments[1] if len(arguments) == 2 else 0.0
        assert [b.shape for b in Hv] == [p.shape for p in params]
        assert error(flat(Hv), H @ flat(v) + damping * flat(v)) < 1e-7
    Hv = approximate_hvp(func, params, v, num_samples=2, damping=0.1)
    assert error(flat(Hv), (H + 0.1 * torch.eye(P)) @ flat(v)) < 1e-7


@pytest.mark.parametrize("sparse", [False, True])
def test_hessian_trace(sparse, H):
    estimate = hessian_trace(func, params, num_samples=1000, sparse=sparse)
    assert abs(float(estimate) - float(H.trace())) < 5 * estimate.standard_error
    # the samples' standard deviation is at most that of Gaussian probes
    assert estimate.standard_error <= 1.2 * float(H.norm()) * (2 / 1000) ** 0.5


@pytest.mark.parametrize("sparse", [False, True])
def test_hessian_trace_with_its_graph(sparse):
    def estimate(create_graph):
        generator = torch.Generator().manual_seed(1)
        return hessian_trace(func, params, 2, create_graph, sparse, generator=generator)

    expected = slopes(lambda: torch.tensor(float(estimate(False)), dtype=torch.float64))
    found = torch.autograd.grad(estimate(True).value, params)
    assert error(flat(list(found)), expected) < 1e-6


def test_gauss_newton_product(G):
    v = v_of(1)
    Gv = gauss_newton_product(model, loss_fn, x, y, v)
    assert error(flat(Gv), G @ flat(v)) < 1e-7


def test_gauss_newton_product_with_its_graph():
    v, u = v_of(1), v_of(2)

    def product(create_graph):
        Gv = gauss_newton_product(model, loss_fn, x, y, v, create_graph=create_graph)
        return flat(Gv) @ flat(u)

    found = torch.autograd.grad(product(create_graph=True), params)
    assert error(flat(list(found)), slopes(lambda: product(False))) < 1e-6


@pytest.mark.parametrize("make", [lambda A: A, Tensor.numpy], ids=["tensor", "array"])
def test_a_symmetric_matrix_with_rounding(make, H):
    # as a program of the user's makes it: by rows, each with roundings of its own
    g = flat(list(torch.autograd.grad(func(), params, create_graph=True)))
    rows = [torch.autograd.grad(g_i, params, retain_graph=True) for g_i in g]
    dense = torch.stack([flat(list(row)) for row in rows])
    assert not torch.equal(dense, dense.T)
    A = as_operator(make(dense))
    assert A.symmetric
    assert error(A @ flat(v_of(0)), H @ flat(v_of(0))) < 1e-7
    values = eigsh(make(dense), k=3, which="LA").values
    expected = torch.linalg.eigvalsh((H + H.T) / 2)[-3:]
    assert (values.sort().values - expected).abs().max() < 1e-7


def test_one_that_is_not():
    A = torch.eye(5, dtype=torch.float64)
    A[0, 1] = 1e-6
    assert not as_operator(A).symmetric
    assert not as_operator(numpy.triu(numpy.ones((3, 3)))).symmetric
