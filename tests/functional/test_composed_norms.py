"""Norm layers that stand in for torch's where answers are differentiated again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from curvop.functional import exact_hvp, gauss_newton_product, model_hvp
from curvop.functional.composed_norms import ComposedNorms
from tests.functional.problems import flat, randn_like

NORMS = {
    "layer": lambda: nn.LayerNorm(3),
    "layer over two axes": lambda: nn.LayerNorm([4, 3], elementwise_affine=False),
    "layer without bias": lambda: nn.LayerNorm(3, bias=False, eps=0.1),
    "batch": lambda: nn.BatchNorm1d(4, momentum=0.3),
    "batch in eval mode": lambda: nn.BatchNorm1d(4).eval(),
    "batch without statistics": lambda: nn.BatchNorm1d(
        4, affine=False, track_running_stats=False
    ),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True),
    "instance with statistics": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    "instance in eval mode": lambda: nn.InstanceNorm1d(4, track_running_stats=True).eval(),
    "group": lambda: nn.GroupNorm(2, 4),
    "rms": lambda: nn.RMSNorm(3),
}


def network(name, dtype=torch.float64):
    """``[5, 4, 3]`` through a norm layer that is nowhere trivial."""
    torch.manual_seed(0)
    norm = NORMS[name]()
    for t in [*norm.parameters(), *norm.buffers()]:
        if t.is_floating_point():
            nn.init.uniform_(t, 0.5, 1.5)
    layers = [nn.Linear(3, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)]
    return nn.Sequential(*layers).to(dtype), torch.randn(5, 4, 3, dtype=dtype)


@pytest.mark.parametrize("name", NORMS)
def test_values_and_buffers_are_those_of_torch(name):
    (_, torchs, *_), X = network(name)
    (_, ours, *_), X = network(name)
    expected = torchs(X)
    with ComposedNorms():
        got = ours(X)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(ours.buffers(), torchs.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", [n for n in NORMS if n not in ("group", "rms")])
def test_moments_are_not_rounded_to_half_precision(name):
    (_, norm, *_), X = network(name, torch.bfloat16)
    X = X + 8
    expected = copy.deepcopy(norm).double()(X.double())
    with ComposedNorms():
        got = norm(X)
    assert got.dtype == torch.bfloat16
    eps = torch.finfo(torch.bfloat16).eps  # for the result, and what it is made of
    torch.testing.assert_close(got.double(), expected, rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("product", ["exact_hvp", "model_hvp", "gauss_newton_product"])
def test_third_derivatives_are_right(name, product):
    model, X = network(name)
    y, loss_fn = torch.tensor([0, 1, 1, 0, 1]), nn.CrossEntropyLoss()
    params = list(model.parameters())
    v = randn_like(params)

    def curvature(create_graph):
        if product == "exact_hvp":
            Cv = exact_hvp(lambda: loss_fn(model(X), y), params, v, create_graph)
        elif product == "model_hvp":
            Cv = model_hvp(model, loss_fn, X, y, v, create_graph)
        else:
            Cv = gauss_newton_product(model, loss_fn, X, y, v, create_graph)
        return flat(v) @ flat(Cv)

    slope = flat(torch.autograd.grad(curvature(True), params)) @ flat(v)
    assert not curvature(False).requires_grad

    def moved(step):
        with torch.no_grad():
            for p, b in zip(params, v, strict=True):
                p += step * b
        return curvature(False)

    h = 1e-4
    # central differences of fourth order, at -2h, -h, h, 2h
    a, b, c, d = moved(-2 * h), moved(h), moved(2 * h), moved(h)
    difference = (a - 8 * b + 8 * c - d) / (12 * h)
    assert float(slope.detach()) == pytest.approx(float(difference), rel=1e-6)
