"""Gauss-Newton products of one model and batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvop.functional import gauss_newton_product


def flat(blocks):
    return torch.cat([b.reshape(-1) for b in blocks])


def dense_ggn(model, loss_fn, X, y):
    params = [p for p in model.parameters() if p.requires_grad]
    prediction = model(X)
    out = prediction.reshape(-1)
    J = torch.stack([flat(torch.autograd.grad(o, params, retain_graph=True)) for o in out])

    def loss(o):
        return loss_fn(o.reshape(prediction.shape), y)

    return J.T @ torch.autograd.functional.hessian(loss, out.detach()) @ J


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


MODELS = {
    "norms": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        torch.randn(5, 4),
    ),
    "group norm": lambda: (
        nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(8, 3)
        ),
        torch.randn(5, 2, 4),
    ),
    "attention": lambda: (Attention(), torch.randn(5, 3, 4)),
}
LOSSES = {
    "cross-entropy": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda: torch.tensor([0, 1, 2, 1, 0]),
    ),
    "mse": (nn.MSELoss(), lambda: torch.randn(5, 3, dtype=torch.float64)),
    "sum": (nn.MSELoss(reduction="sum"), lambda: torch.randn(5, 3, dtype=torch.float64)),
    "callable": (lambda p, y: (p - y).pow(4).mean(), lambda: torch.ones(5, 3).double()),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_equals_dense(name, loss):
    torch.manual_seed(0)
    model, X = MODELS[name]()
    model, X = model.double().eval(), X.double()
    loss_fn, target = LOSSES[loss]
    y = target()
    G = dense_ggn(model, loss_fn, X, y)
    v = torch.randn(len(G), dtype=torch.float64)
    error = gauss_newton_product(model, loss_fn, X, y, v) - G @ v
    assert error.norm() <= 1e-10 * (G @ v).norm()


def test_create_graph_differentiates_in_the_parameters():
    w = nn.Linear(1, 1, bias=False).double()
    X, y = torch.ones(1, 1).double(), torch.zeros(1, 1).double()

    class Cubed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = w

        def forward(self, x):
            return self.w(x) ** 3

    model, v = Cubed(), [torch.ones(1, 1).double()]
    (Gv,) = gauss_newton_product(model, nn.MSELoss(), X, y, v, create_graph=True)
    (slope,) = torch.autograd.grad(Gv.sum(), w.weight)
    # G = 2 (3 w²)² = 18 w⁴
    torch.testing.assert_close(Gv, 18 * w.weight.detach() ** 4)
    torch.testing.assert_close(slope, 72 * w.weight.detach() ** 3)


def test_leaves_the_model_as_found_and_refuses_a_wrong_vector():
    model, X = nn.Linear(4, 3), torch.randn(5, 4)
    y = torch.zeros(5, dtype=torch.long)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    gauss_newton_product(model, nn.CrossEntropyLoss(), X, y, torch.ones(15))
    assert all(p.grad is None for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    with pytest.raises(ValueError, match=r"\(15,\).*\(14,\)"):
        gauss_newton_product(model, nn.CrossEntropyLoss(), X, y, torch.ones(14))
    with pytest.raises(TypeError, match="Module"):
        gauss_newton_product(lambda x: x, nn.CrossEntropyLoss(), X, y, torch.ones(15))
