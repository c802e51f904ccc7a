"""The losses that stand in for torch's, against torch's values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from curvop.autograd.composed_losses import ComposedLosses
from tests.curvature.dense import integers, normal

N, C, STEPS, S = 5, 4, 7, 3
REDUCTIONS = ("none", "mean", "sum")
PREDICTION = normal(N, C, seed=1)
LABELS = integers(C, N, seed=2)
LABEL_SETS = torch.tensor(
    [[0, -1, 1, 1], [3, 2, -1, 0], [0, 1, 2, 3], [-1, 0, 0, 0], [2, 2, -1, -1]]
)
WEIGHT = torch.tensor([0.0, 0.3, 2.0, 1.0], dtype=torch.float64)
SOUND = normal(STEPS, N, C, seed=3)
SPELLING = integers(C - 1, N, S, seed=4) + 1
STEPS_OF = torch.tensor([7, 7, 5, 3, 6])
SIZES = torch.tensor([3, 0, 2, 1, 3])


def value_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Any]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    cotangent = normal(*value.shape, seed=9)
    return value.detach(), torch.autograd.grad(value, leaf, cotangent)[0]


def check(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """torch's own loss, and the composed one, which is differentiable twice."""
    expected = value_and_gradient(loss, x)
    with ComposedLosses():
        torch.testing.assert_close(value_and_gradient(loss, x), expected)
        assert torch.autograd.gradgradcheck(
            loss, x.clone().requires_grad_(), fast_mode=True
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_multi_margin(p: int, weight: Tensor | None, reduction: str) -> None:
    options = {"p": p, "margin": 0.7, "weight": weight, "reduction": reduction}
    check(lambda x: F.multi_margin_loss(x, LABELS, **options), PREDICTION)
    check(lambda x: F.multi_margin_loss(x, LABELS[0], **options), PREDICTION[0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_multilabel_margin(reduction: str) -> None:
    options = {"reduction": reduction}
    check(lambda x: F.multilabel_margin_loss(x, LABEL_SETS, **options), PREDICTION)
    check(lambda x: F.multilabel_margin_loss(x, LABEL_SETS[1], **options), PREDICTION[1])


def ctc(sound: Tensor, *args: Any, **options: Any) -> Tensor:
    """torch's gradient is only right for normalised probabilities."""
    return F.ctc_loss(sound.log_softmax(-1), *args, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ctc(reduction: str) -> None:
    red = {"reduction": reduction}
    check(lambda x: ctc(x, SPELLING, STEPS_OF, SIZES, **red), SOUND)
    row = torch.cat([s[:n] for s, n in zip(SPELLING, SIZES, strict=True)])
    check(lambda x: ctc(x, row, STEPS_OF.tolist(), SIZES.tolist(), **red), SOUND)
    other = {"blank": C - 1, "zero_infinity": True, **red}
    check(lambda x: ctc(x, SPELLING - 1, STEPS_OF, SIZES, **other), SOUND)
    one = torch.tensor(STEPS), torch.tensor(S)
    check(lambda x: ctc(x, SPELLING[0], *one, **red), SOUND[:, 0])


def test_ctc_without_an_alignment() -> None:
    """A target longer than the sound: infinite, or nothing."""
    args = SOUND[:2, :1], SPELLING[:1], torch.tensor([2]), torch.tensor([3])
    with ComposedLosses():
        assert ctc(*args) == torch.inf
        assert ctc(*args, zero_infinity=True) == 0


@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
@pytest.mark.parametrize(("size_average", "reduce"), [(False, True), (True, False)])
def test_legacy_arguments(size_average: bool, reduce: bool) -> None:
    legacy = {"size_average": size_average, "reduce": reduce}
    check(lambda x: F.multi_margin_loss(x, LABELS, **legacy), PREDICTION)


def test_modules_are_covered() -> None:
    loss = torch.nn.MultiMarginLoss(margin=0.4)
    check(lambda x: loss(x, LABELS), PREDICTION)
