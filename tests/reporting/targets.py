"""Targets of reports, as users may bring them: small, and awkward."""

from __future__ import annotations

import torch
from torch import nn

DTYPE = torch.float64


def seeded() -> torch.Generator:
    torch.manual_seed(0)
    return torch.Generator().manual_seed(1)


def normal(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(), dtype=torch.float64).to(dtype)


def classes(n: int, C: int = 3) -> torch.Tensor:
    return torch.randint(0, C, (n,), generator=seeded())


def batches(X, y, sizes=(12, 20, 8)):
    return list(zip(X.split(sizes), y.split(sizes), strict=True))


def plain():
    """Enough parameters that nothing is exact by accident."""
    X, y = normal(40, 6), classes(40)
    seeded()
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(DTYPE)
    return model, nn.CrossEntropyLoss(), list(model.parameters()), batches(X, y)


def trained():
    """With Adam's state."""
    model, loss, params, data = plain()
    optimizer = torch.optim.Adam(params, lr=1e-2)
    for _ in range(5):
        for X, y in data:
            optimizer.zero_grad()
            loss(model(X), y).backward()
            optimizer.step()
    return model, loss, params, data, optimizer


def as_dict():
    """Everything by name, the parameters those that are trained."""
    model, loss, _, data = plain()
    model[0].bias.requires_grad_(False)
    return {"model": model, "loss": loss, "params": None, "data": data}


def batch_norm_eval():
    model, loss, params, data = batch_norm_train()
    return model.eval(), loss, params, data


def batch_norm_train():
    X, y = normal(40, 3, 4, 4), classes(40)
    seeded()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).to(DTYPE)
    with torch.no_grad():
        model(X)
    return model, nn.CrossEntropyLoss(), model.parameters(), batches(X, y)


def attention():
    """Fused kernels, and the inference path of an encoder."""
    X, y = normal(40, 5, 4), classes(40)
    seeded()

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, X):
            return self.head(self.encoder(X).mean(1))

    model = Classifier().to(DTYPE).eval()
    return model, nn.CrossEntropyLoss(), model.parameters(), batches(X, y)


def dropout():
    model, loss, params, data = plain()
    return nn.Sequential(model, nn.Dropout(0.5)), loss, params, data


def dict_inputs():
    X, y = normal(40, 6), classes(40)
    seeded()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, X):
            return self.a(X["left"]).tanh() + self.b(X["right"])

    model = Two().to(DTYPE)
    data = [({"left": x, "right": -x}, t) for x, t in batches(X, y)]
    return model, nn.CrossEntropyLoss(), model.parameters(), data


def frozen_and_tied():
    ids, y = classes(40, 5), classes(40, 5)
    seeded()

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.middle = nn.Linear(4, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.middle.weight.requires_grad_(False)

        def forward(self, ids):
            return self.head(self.middle(self.embedding(ids)).tanh())

    model = Tied().to(DTYPE)
    return model, nn.CrossEntropyLoss(), None, batches(ids, y)


def one_batch():
    model, loss, params, data = plain()
    return model, loss, params, data[:1]


def tiny():
    """Fewer parameters than eigenvalues are asked for."""
    X = normal(10, 2)
    model = nn.Linear(2, 1).to(DTYPE)
    return model, nn.MSELoss(), model.parameters(), [(X, X.sum(1, keepdim=True))]


def one_parameter():
    w = torch.ones(1, dtype=DTYPE)
    data = [(normal(5), normal(5))]
    return (lambda p, X: p["w"] * X), nn.MSELoss(), {"w": w}, data


def zero_gradient():
    """At the minimum of a quadratic."""
    X = normal(40, 6)
    model = nn.Linear(6, 1).to(DTYPE)
    return model, nn.MSELoss(), model.parameters(), [(X, model(X).detach())]


def negative():
    """A loss that is concave: no curvature is positive."""
    X = normal(40, 6)
    model = nn.Linear(6, 2).to(DTYPE)

    def loss(prediction, y):
        return -(prediction - y).square().mean()

    return {
        "model": model,
        "loss": loss,
        "params": model.parameters(),
        "data": [(X, normal(40, 2))],
        "reduction": "mean",
    }


def single_precision():
    model, loss, _, data = plain()
    model = model.float()
    return model, loss, model.parameters(), [(X.float(), y) for X, y in data]


def half_precision():
    model, loss, _, data = plain()
    model = model.bfloat16()
    return model, loss, model.parameters(), [(X.bfloat16(), y) for X, y in data]


def shuffled():
    """A loader in another order at each pass."""
    X, y = normal(40, 6), classes(40)
    model, loss, params, _ = plain()
    dataset = torch.utils.data.TensorDataset(X, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    return model, loss, params, loader


def named_like_html():
    """Names that a page must not take for its own."""
    _, loss, params, data = plain()
    names = ["<script>alert(1)</script>", "a & b", '"quoted"', "<b>bold"]

    def model(params, X):
        A, a, B, b = params.values()
        return torch.tanh(X @ A.T + a) @ B.T + b

    return model, loss, dict(zip(names, params, strict=True)), data
