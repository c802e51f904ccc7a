"""Gauss-Newton products of one model and batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvop.functional import gauss_newton_product
from tests.functional.problems import (
    classifier,
    dense_ggn,
    dense_hessian,
    flat,
    randn_like,
    relative_error,
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0].mean(1)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x)


def convolution(norm):
    layers = [nn.Conv1d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(*layers), torch.randn(5, 2, 4)


MODELS = {
    "layer norm": lambda: (classifier()[0], torch.randn(5, 5)),
    "group norm": lambda: convolution(nn.GroupNorm(2, 4)),
    "instance norm": lambda: convolution(nn.InstanceNorm1d(4, affine=True)),
    "batch norm": lambda: convolution(nn.BatchNorm1d(4)),
    "batch norm in eval mode": lambda: (
        convolution(nn.BatchNorm1d(4))[0].eval(),
        torch.randn(5, 2, 4),
    ),
    "attention in eval mode": lambda: (Attention().eval(), torch.randn(5, 3, 4)),
    "recurrent": lambda: (Recurrent(), torch.randn(5, 3, 4)),
    "unused parameter": lambda: (Unused(), torch.randn(5, 4)),
}
LABELS = torch.tensor([0, 1, 2, 1, 0])
TARGETS = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
    "weighted": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=1),
        LABELS,
    ),
    "mse": (nn.MSELoss(), TARGETS),
    "mse sum": (nn.MSELoss(reduction="sum"), TARGETS),
    "bce": (nn.BCEWithLogitsLoss(), TARGETS.abs()),
    "callable": (lambda f, y: (f - y).pow(4).mean(), TARGETS),
    "not convex": (lambda f, y: (f - y).cos().sum(), TARGETS),
    "linear": (lambda f, y: (f * y).sum(), TARGETS),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_equals_dense(name, loss):
    torch.manual_seed(0)
    model, X = MODELS[name]()
    model, X = model.double(), X.double()
    loss_fn, y = LOSSES[loss]
    v = randn_like(model.parameters())
    Gv = gauss_newton_product(model, loss_fn, X, y, v)
    expected = dense_ggn(model, loss_fn, X, y) @ flat(v)
    assert (flat(Gv) - expected).norm() <= 1e-12 * expected.norm()
    if loss == "linear":
        assert not expected.any()


def test_forms_of_v():
    model, X, y = classifier()
    loss_fn, blocks = nn.CrossEntropyLoss(), randn_like(model.parameters())
    expected = dense_ggn(model, loss_fn, X, y) @ flat(blocks)
    named = dict(zip(dict(model.named_parameters()), blocks, strict=True))
    of_tensor = gauss_newton_product(model, loss_fn, X, y, flat(blocks))
    of_tuple = gauss_newton_product(model, loss_fn, X, y, tuple(blocks))
    of_dict = gauss_newton_product(model, loss_fn, X, y, named)
    assert type(of_tuple) is tuple
    assert list(of_dict) == list(named)
    for Gv in (of_tensor, flat(of_tuple), flat(of_dict.values())):
        assert relative_error(Gv, expected) < 1e-12


def test_is_the_hessian_of_a_linear_model():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    params, loss_fn = list(model.parameters()), nn.CrossEntropyLoss()
    H = dense_hessian(lambda: loss_fn(model(X), y), params)
    v = flat(randn_like(params))
    assert relative_error(gauss_newton_product(model, loss_fn, X, y, v), H @ v) < 1e-12


def test_predictions_of_several_tensors():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2).double(), nn.Linear(3, 1).double()

        def forward(self, x):
            return {"a": self.a(x["x"]).tanh(), "rest": (self.b(x["x"]).exp(),)}

    class Joined(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            out = self.inner({"x": x})
            return torch.cat([out["a"], *out["rest"]], 1)

    torch.manual_seed(0)
    model, X, y = Two(), torch.randn(4, 3).double(), torch.randn(4, 1).double()

    def loss(out, y):
        return (out["a"].sum(1, keepdim=True) * out["rest"][0] - y).square().mean()

    def joined_loss(out, y):
        return (out[:, :2].sum(1, keepdim=True) * out[:, 2:] - y).square().mean()

    v = flat(randn_like(model.parameters()))
    G = dense_ggn(Joined(model), joined_loss, X, y)
    assert relative_error(gauss_newton_product(model, loss, {"x": X}, y, v), G @ v) < 1e-12


def test_a_loss_without_a_second_derivative_in_torch():
    model, X, y = classifier()

    def squared_hinge(f, y):
        others = 1 - nn.functional.one_hot(y, 3)
        violation = (1 - f.gather(1, y[:, None]) + f).relu() * others
        return violation.square().sum() / f.numel()

    v = flat(randn_like(model.parameters()))
    expected = dense_ggn(model, squared_hinge, X, y) @ v
    Gv = gauss_newton_product(model, nn.MultiMarginLoss(p=2), X, y, v)
    assert relative_error(Gv, expected) < 1e-12


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_loss_may_write_into_the_prediction(create_graph):
    model, X, _ = classifier()
    y, v = torch.randn(6, 3).double(), flat(randn_like(model.parameters()))

    def square(f, y):
        return (f - y).exp().sum()

    def in_place(f, y):
        return f.sub_(y).exp_().sum()

    expected = dense_ggn(model, square, X, y) @ v
    Gv = gauss_newton_product(model, in_place, X, y, v, create_graph)
    assert relative_error(Gv.detach(), expected) < 1e-12


def test_create_graph_differentiates_in_the_parameters():
    class Cubed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))

        def forward(self, x):
            return self.w**3 * x

    model, v = Cubed(), [torch.tensor([2.0], dtype=torch.float64)]
    x, y, w = torch.ones(1).double(), torch.zeros(1).double(), model.w.detach()

    def quartic(f, y):
        return (f - y).pow(4).sum()

    (Gv,) = gauss_newton_product(model, quartic, x, y, v, create_graph=True)
    (slope,) = torch.autograd.grad(Gv.sum(), model.w)
    # G = (3 w²)² · 12 w⁶ = 108 w¹⁰: through both Jacobians and the loss
    torch.testing.assert_close(Gv.detach(), 2 * 108 * w**10)
    torch.testing.assert_close(slope, 2 * 1080 * w**9)
    (Gv,) = gauss_newton_product(model, quartic, x, y, v)
    assert not Gv.requires_grad


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_model_that_answers_its_input(create_graph):
    class Identity(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x

    x = torch.ones(1, 2)
    arguments = (Identity(), nn.MSELoss(), x, torch.zeros(1, 2), torch.ones(2))
    Gv = gauss_newton_product(*arguments, create_graph=create_graph)
    assert Gv.tolist() == [0, 0]
    assert not x.requires_grad


def test_refuses():
    model, X, y = classifier()
    loss_fn, v = nn.CrossEntropyLoss(), flat(model.parameters()).detach()
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        gauss_newton_product(lambda X: X, loss_fn, X, y, v)
    with pytest.raises(ValueError, match=r"\(80,\).*\(79,\)"):
        gauss_newton_product(model, loss_fn, X, y, v[1:])
    with pytest.raises(ValueError, match=r"\(6,\).*reduction"):
        gauss_newton_product(model, nn.CrossEntropyLoss(reduction="none"), X, y, v)
    with pytest.raises(ValueError, match=r"finite value.*nan"):
        gauss_newton_product(model, loss_fn, X * float("nan"), y, v)
    with pytest.raises(TypeError, match="int64"):
        gauss_newton_product(model, lambda f, y: f.argmax(), X, y, v)
    with pytest.raises(ValueError, match="got none"):
        gauss_newton_product(model.requires_grad_(False), loss_fn, X, y, v)
