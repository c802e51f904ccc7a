"""All losses of torch.nn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases.problem import Problem
from tests.comparing import random

from .case import Case, drawn

N, WIDTH = 3, 6
Loss = Callable[[Any, Any], Tensor]
POSITIVE = random(N, WIDTH, seed=5).abs()
PROBABILITIES = random(N, WIDTH, seed=5).softmax(1)
BITS = (random(N, WIDTH, seed=6) > 0).double()
SIGNS = 2 * BITS - 1
CLASSES = torch.tensor([0, 2, 5])
LABELS = torch.tensor([[0, 3, -1, 1, 1, 1], [5, -1, 0, 0, 0, 0], [2, 4, 1, -1, 0, 0]])
NUMBERS = random(N, WIDTH, seed=7)
PAIR = torch.tensor([1.0, -1.0, 1.0]).double()


def halves(f: Tensor) -> tuple[Tensor, Tensor]:
    return f[:, :3], f[:, 3:]


def of_halves(loss: nn.Module) -> Loss:
    """Of two inputs, both predicted."""
    return lambda f, y: loss(*halves(f), y)


def of_thirds(loss: nn.Module) -> Loss:
    """Of three inputs, all predicted."""
    return lambda f, y: loss(f[:, :2], f[:, 2:4], f[:, 4:])


def spelled(f: Tensor, y: Tensor) -> Tensor:
    """CTC over four steps of three classes, which are twelve outputs."""
    sound = torch.cat([f, f.sin()], 1).view(-1, 4, 3).transpose(0, 1).log_softmax(2)
    return nn.CTCLoss(reduction="sum")(
        sound, y, *(torch.full((len(f),), n) for n in (4, 2))
    )


# name: (loss, targets); of a callable the reduction is "sum"
LOSSES: dict[str, tuple[Any, Tensor]] = {
    "BCELoss": (lambda f, y: nn.BCELoss(reduction="sum")(f.sigmoid(), y), BITS),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), BITS),
    "CTCLoss": (spelled, torch.tensor([[1, 2], [2, 2], [1, 1]])),
    "CosineEmbeddingLoss": (of_halves(nn.CosineEmbeddingLoss(reduction="sum")), PAIR),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), CLASSES),
    "CrossEntropyLoss of probabilities": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        PROBABILITIES,
    ),
    "GaussianNLLLoss": (
        lambda f, y: nn.GaussianNLLLoss(reduction="sum")(f[:, :3], y, f[:, 3:].exp()),
        NUMBERS[:, :3],
    ),
    "HingeEmbeddingLoss": (nn.HingeEmbeddingLoss(), SIGNS),
    "HuberLoss": (nn.HuberLoss(delta=0.5), NUMBERS),
    "KLDivLoss": (
        lambda f, y: nn.KLDivLoss(reduction="sum")(f.log_softmax(1), y),
        PROBABILITIES,
    ),
    "L1Loss": (nn.L1Loss(), NUMBERS),
    "MSELoss": (nn.MSELoss(), NUMBERS),
    "MarginRankingLoss": (
        of_halves(nn.MarginRankingLoss(0.1, reduction="sum")),
        SIGNS[:, :3],
    ),
    "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss(), LABELS),
    "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss(), BITS),
    "MultiMarginLoss": (nn.MultiMarginLoss(p=2), CLASSES),
    "NLLLoss": (lambda f, y: nn.NLLLoss(reduction="sum")(f.log_softmax(1), y), CLASSES),
    "NLLLoss2d": (
        lambda f, y: nn.NLLLoss(reduction="sum")(f.view(-1, 3, 1, 2).log_softmax(1), y),
        torch.tensor([[[0, 1]], [[2, 2]], [[1, 0]]]),
    ),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(full=True), POSITIVE.ceil()),
    "SmoothL1Loss": (nn.SmoothL1Loss(beta=0.5), NUMBERS),
    "SoftMarginLoss": (nn.SoftMarginLoss(), SIGNS),
    "TripletMarginLoss": (of_thirds(nn.TripletMarginLoss(reduction="sum")), NUMBERS),
    "TripletMarginWithDistanceLoss": (
        of_thirds(nn.TripletMarginWithDistanceLoss(reduction="sum")),
        NUMBERS,
    ),
}


def _problem(loss: Loss, y: Tensor) -> Problem:
    model = drawn(
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, WIDTH, bias=False))
    )
    options = {} if hasattr(loss, "reduction") else {"reduction": "sum"}
    X = random(N, 2, seed=1)
    params = list(model.parameters())
    return Problem(model, params, loss, X, y, cuts=(N,), options=options)


class Adaptive(nn.Module):
    """With weights of its own, which are those of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.last = nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], div_value=2.0)

    def forward(self, X: Tensor) -> Tensor:
        return self.last.log_prob(self.first(X).tanh())


class LinearCrossEntropy(nn.Module):
    """The layer and the loss in one: the prediction is the loss of each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.last = nn.LinearCrossEntropyLoss(4, 6, reduction="none")

    def forward(self, X: Tensor) -> Tensor:
        return self.last(self.first(X).tanh(), CLASSES[: len(X)])


def _adaptive() -> Problem:
    model = drawn(Adaptive)
    X = random(N, 2, seed=1)
    loss = nn.NLLLoss()
    return Problem(model, list(model.parameters()), loss, X, CLASSES, cuts=(N,))


def _linear_cross_entropy() -> Problem:
    model = drawn(LinearCrossEntropy)
    X, y = random(N, 2, seed=1), random(N, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y, cuts=(N,))


def cases() -> Iterator[Case]:
    """All of them."""
    for name, (loss, y) in LOSSES.items():
        yield Case(f"nn.{name}", lambda loss=loss, y=y: _problem(loss, y))
    yield Case("nn.AdaptiveLogSoftmaxWithLoss", _adaptive)
    if hasattr(nn, "LinearCrossEntropyLoss"):
        yield Case("nn.LinearCrossEntropyLoss", _linear_cross_entropy)
