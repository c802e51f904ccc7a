"""Hessian-vector products of a model and a loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvop.functional import model_hvp
from tests.functional.problems import (
    classifier,
    dense_hessian,
    flat,
    randn_like,
    relative_error,
)


def test_takes_blocks_names_and_one_vector():
    model, X, y = classifier()
    params, loss_fn = list(model.parameters()), nn.CrossEntropyLoss(label_smoothing=0.1)
    H = dense_hessian(lambda: loss_fn(model(X), y), params)
    blocks = randn_like(params)
    v = flat(blocks)
    assert relative_error(model_hvp(model, loss_fn, X, y, v), H @ v) < 1e-12
    assert relative_error(flat(model_hvp(model, loss_fn, X, y, blocks)), H @ v) < 1e-12
    names = [name for name, _ in model.named_parameters()]
    named = dict(zip(names, blocks, strict=True))
    Hv = model_hvp(model, loss_fn, X, y, named)
    assert list(Hv) == names
    assert relative_error(flat(Hv.values()), H @ v) < 1e-12


def test_frozen_parameters_are_left_out_and_tied_ones_come_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    X, Y = torch.randn(2, 4, 3, dtype=torch.float64)
    params = [model[0].weight, model[2].bias]
    H = dense_hessian(lambda: nn.functional.mse_loss(model(X), Y), params)
    v = flat(randn_like(params))
    assert relative_error(model_hvp(model, nn.MSELoss(), X, Y, v), H @ v) < 1e-12
    assert not model[0].bias.requires_grad


def test_a_loss_without_a_second_derivative_in_torch():
    model, X, y = classifier()
    params, loss_fn = list(model.parameters()), nn.MultiMarginLoss(p=2)
    v = flat(randn_like(params))
    Hv = model_hvp(model, loss_fn, X, y, v)
    shift = 1e-5 * v / v.norm()
    gradients = []
    for sign in (1, -1):
        moved = flat(params).detach() + sign * shift
        torch.nn.utils.vector_to_parameters(moved, params)
        gradients.append(flat(torch.autograd.grad(loss_fn(model(X), y), params)))
        torch.nn.utils.vector_to_parameters(moved - sign * shift, params)
    differences = (gradients[0] - gradients[1]) / 2e-5 * v.norm()
    assert relative_error(Hv, differences) < 1e-6


def test_create_graph():
    model, X, y = classifier()
    params, v = list(model.parameters()), randn_like(model.parameters())

    def curvature(create_graph):
        Hv = model_hvp(model, nn.CrossEntropyLoss(), X, y, v, create_graph=create_graph)
        return flat(v) @ flat(Hv)

    slope = flat(torch.autograd.grad(curvature(True), params))
    assert not curvature(False).requires_grad
    step = 1e-5
    with torch.no_grad():
        values = []
        for h in (step, -2 * step, step):  # there, beyond, and back
            for p, b in zip(params, v, strict=True):
                p += h * b
            values.append(curvature(False))
    difference = float(values[0] - values[1]) / (2 * step)
    assert float(slope @ flat(v)) == pytest.approx(difference, rel=1e-7)


def test_refuses():
    model, X, y = classifier()
    loss_fn, v = nn.CrossEntropyLoss(), flat(model.parameters()).detach()
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        model_hvp(lambda X: X, loss_fn, X, y, v)
    with pytest.raises(ValueError, match=r"\(80,\).*\(79,\)"):
        model_hvp(model, loss_fn, X, y, v[1:])
    with pytest.raises(ValueError, match=r"\(6,\).*reduction"):
        model_hvp(model, nn.CrossEntropyLoss(reduction="none"), X, y, v)
    with pytest.raises(ValueError, match=r"finite value.*nan"):
        model_hvp(model, loss_fn, X * float("nan"), y, v)
    with pytest.raises(ValueError, match="got none"):
        model_hvp(model.requires_grad_(False), loss_fn, X, y, v)
