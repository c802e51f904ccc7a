"""Bad input: what is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import NonDeterministicError
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.cases.problem import seeded
from tests.comparing import random

X, Y = random(4, 2), random(4, 3)
LABELS = torch.tensor([0, 2, 1, 1])
both = pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])


def model(*more: nn.Module) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(2, 3), *more), torch.float64)


def build(kind: Any, **changed: Any) -> Any:
    network = changed.pop("model", model())
    loss, data = changed.pop("loss", nn.MSELoss()), changed.pop("data", [(X, Y)])
    return kind(network, loss, list(network.parameters()), data, **changed)


@both
@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"fisher_type": "type2"}, ValueError, "fisher_type as one of"),
        ({"kfac_approx": "sum"}, ValueError, "kfac_approx as one of"),
        ({"unsupported": "ignore"}, ValueError, "unsupported as one of"),
        ({"per": "token"}, ValueError, "per as one of"),
        ({"mc_samples": 0, "fisher_type": "mc"}, ValueError, "at least 1"),
        ({"mc_samples": 2}, ValueError, "only for fisher_type='mc'"),
        ({"mc_samples": 1.5}, TypeError, "integer"),
        ({"num_data": 5}, ValueError, "num_data says 5, but the data holds 4"),
        ({"loss": nn.MSELoss(reduction="none")}, ValueError, "reduction"),
        ({"data": iter([(X, Y)])}, ValueError, "one-shot"),
        ({"data": []}, ValueError, "at least one batch"),
        ({"data": [(X, Y * torch.nan)]}, ValueError, "finite loss"),
        (
            {
                "loss": nn.CrossEntropyLoss(),
                "data": [(X, torch.full((4,), -100))],
            },
            ValueError,
            "finite loss|averages over nothing",
        ),
    ],
)
def test_bad_arguments(kind: Any, options: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        build(kind, **options)


@both
def test_no_predictive_distribution(kind: Any) -> None:
    """The message names the function to register one with."""
    for loss in (nn.HuberLoss(), nn.SmoothL1Loss()):
        with pytest.raises(ValueError, match="register_predictive"):
            build(kind, loss=loss, fisher_type="mc")


@both
def test_loss_that_is_not_convex(kind: Any) -> None:
    def well(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        terms = ((prediction - y) ** 2 - 9) ** 2
        return terms if reduction == "none" else getattr(terms, reduction)()

    with pytest.raises(ValueError, match="well is not convex"):
        build(kind, loss=well)
    assert build(kind, loss=well, fisher_type="empirical").psd


@both
def test_loss_without_terms(kind: Any) -> None:
    def opaque(prediction: Tensor, y: Tensor) -> Tensor:
        return ((prediction - y) ** 2).mean()

    with pytest.raises(TypeError, match="unreduced terms"):
        build(kind, loss=opaque, reduction="mean", fisher_type="empirical")


class Summed(nn.Module):
    """Loses the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.layer(X).sum(0)


@both
def test_no_batch_axis(kind: Any) -> None:
    network = seeded(Summed, torch.float64)
    with pytest.raises(
        ValueError, match=r"4 data of the batch as leading axis.*batch_size_fn"
    ):
        build(kind, model=network, data=[(X, Y[0])], batch_size_fn=len)
    with pytest.raises(ValueError, match="Pass batch_size_fn"):
        build(
            kind,
            data=[({"x": X[0], "n": torch.tensor(1)}, torch.tensor(0.0))],
            model=Nested(),
        )


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3).double()

    def forward(self, X: dict[str, Tensor]) -> Tensor:
        return self.layer(X["x"]).sum()


@both
def test_random_models_are_refused(kind: Any) -> None:
    with pytest.raises(NonDeterministicError):
        build(kind, model=model(nn.Dropout(0.5)))


def test_parameters_of_another_model() -> None:
    network: Callable[..., Any] = model()
    with pytest.raises(ValueError, match="does not belong to the module"):
        KFACLinearOperator(network, nn.MSELoss(), model().parameters(), [(X, Y)])


@both
def test_closure_over_other_tensors(kind: Any) -> None:
    network, others = model(), list(model().parameters())
    with pytest.raises(ValueError, match="uses none of the given parameters"):
        kind(lambda X: network(X), nn.MSELoss(), others, [(X, Y)])
    K = kind(lambda X: network(X), nn.MSELoss(), list(network.parameters()), [(X, Y)])
    assert K.trace() > 0


@both
def test_loss_that_is_no_mean(kind: Any) -> None:
    def uneven(prediction: Tensor, y: Tensor) -> Tensor:
        return ((prediction - y) ** 2).sum() / len(y) ** 2

    with pytest.raises(ValueError, match="no mean over examples"):
        build(kind, loss=uneven, reduction="mean", data=[(X[:3], Y[:3]), (X[3:], Y[3:])])


class Once(torch.autograd.Function):
    """A function that can be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * g * x


class Squared(nn.Module):
    def forward(self, X: Tensor) -> Tensor:
        return Once.apply(X)


@both
def test_first_derivatives_are_enough(kind: Any) -> None:
    network = model(Squared(), nn.Linear(3, 3))
    assert build(kind, model=network).trace() > 0
