"""Verdicts: which ways work, which ones are right, and what is chosen."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvop
from curvop.derivatives import WrongDerivativeError
from curvop.inspection import Preflight, preflight
from curvop.inspection.baseline import probes
from curvop.risk.parameters import as_parameters
from tests.cases import attention, awkward, parameterizations, structures, truth
from tests.cases.problem import Problem, classes, normal, seeded
from tests.inspection import models

Build = Callable[[torch.dtype], Problem]


def verdicts(found: Preflight, matrix: str) -> dict[str, str]:
    return {t.way: t.verdict for t in found.trials if t.matrix == matrix}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ------------------------------------------------------------------ what is right


def test_all_is_well() -> None:
    found = models.of_mlp()
    assert found.is_ready
    for matrix in ("Hessian", "GGN", "EF"):
        assert verdicts(found, matrix) == {
            "func": "right",
            "backpack": "right",
            "differences": "right",
            "rows": "declined",
            "factored": "declined",
            "recorded": "right",
            "graphs": "right",
        }
        assert found.forecast(matrix).way == "func"
        assert re.match(r"proven to \de-0[678]", found.forecast(matrix).proof)
        assert found.trial(matrix, "func").is_chosen


def test_rows_and_factors_where_they_pay() -> None:
    wide = nn.Sequential(nn.Linear(3, 99), nn.Tanh(), nn.Linear(99, 99), nn.Linear(99, 1))
    small = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 1),
    )
    for form, model, shape in (("factored", wide, (3,)), ("rows", small, (1, 32, 32))):
        batches = [(normal(torch.float32, 8, *shape), normal(torch.float32, 8, 1))]
        found = models.of(model, batches)
        for matrix in ("GGN", "EF"):
            trial = found.trial(matrix, form)
            assert (trial.verdict, trial.is_chosen) == ("right", True)
            assert found.forecast(matrix).form == form
            assert trial.kept_bytes > 0
        assert found.trial("Hessian", form).verdict == "declined"


@pytest.mark.parametrize(
    ("build", "way"),
    [
        (attention.scaled_dot_product, "func"),
        (structures.user_dict_inputs, "func"),
        (awkward.checkpointed, "backpack"),
        (parameterizations.closure, "backpack"),
    ],
)
def test_awkward_models_are_ready(build: Build, way: str) -> None:
    found = models.of_problem(build(torch.float32))
    assert found.is_ready, str(found)
    assert found.forecast("GGN").way == way
    assert all(r.doubt is None and r.dtype == "float64" for r in found.references)
    assert max(t.error for t in found.trials if t.works) < 1e-5


# ------------------------------------------------------------------ what is wrong


def test_wrong_second_derivative_is_found() -> None:
    """Double backward in float64 is wrong as well: only differences know better."""
    found = models.of(models.around(models.WrongCube))
    assert verdicts(found, "Hessian")["func"] == "wrong"
    assert verdicts(found, "Hessian")["backpack"] == "wrong"
    assert verdicts(found, "Hessian")["graphs"] == "wrong"
    assert verdicts(found, "Hessian")["differences"] == "right"
    assert verdicts(found, "GGN")["backpack"] == "right"  # first derivatives do
    assert verdicts(found, "EF")["backpack"] == "right"
    forecast = found.forecast("Hessian")
    assert (forecast.way, forecast.form) == ("differences", "scratch")
    assert "custom function WrongCube in layer Around" in forecast.reason
    assert found.forecast("GGN").way == "backpack"
    assert found.is_ready, str(found)
    text = str(found)
    assert "wrong" in text
    assert "The operator takes differences, proven to" in text
    assert "at fault is custom function WrongCube" in " ".join(text.split())


def test_error_of_a_wrong_second_derivative() -> None:
    """The preflight tells it; the operator refuses."""
    wrong, right = (
        models.around(f, torch.float64) for f in (models.WrongCube, models.cube)
    )
    batches = models.data(torch.float64)
    found = models.of(wrong, batches)
    problem = Problem(right, list(right.parameters()), nn.MSELoss(), *batches[0])
    v = probes(as_parameters(right, problem.params))[0]
    exact = truth.dense(problem, "hessian") @ v

    def hessian(**options: Any) -> curvop.HessianLinearOperator:
        params = list(wrong.parameters())
        return curvop.HessianLinearOperator(
            wrong, nn.MSELoss(), params, batches[:1], **options
        )

    H = hessian(differentiation="backpack", check_deterministic=False)
    error = relative(H @ v, exact)
    assert error > 0.1
    told = found.trial("Hessian", "backpack").error
    assert told == pytest.approx(error, rel=1e-4)
    with pytest.raises(WrongDerivativeError, match="WrongCube in layer Around"):
        hessian(differentiation="backpack")
    told = found.trial("Hessian", "differences").error
    assert relative(hessian(differentiation="differences") @ v, exact) <= 10 * told < 1e-6


def test_right_custom_function_is_not_called_wrong() -> None:
    found = models.of(models.around(models.RightCube))
    assert found.is_ready
    assert verdicts(found, "Hessian")["backpack"] == "right"
    assert verdicts(found, "GGN")["func"] == "fails"
    assert found.forecast("GGN").way == "backpack"
    assert "jvp" in found.trial("GGN", "func").reason


def test_function_that_can_be_differentiated_once() -> None:
    found = models.of(models.around(models.OnceCube))
    for t in found.trials:
        if t.works:
            assert t.verdict == ("right" if t.way == "differences" else "wrong")
    assert {f.way for f in found.forecasts} == {"differences"}
    assert found.is_ready, str(found)


def test_wrong_forward_mode_is_found_and_not_chosen() -> None:
    found = models.of(models.around(models.WrongTangent))
    for matrix in ("GGN", "EF"):
        assert verdicts(found, matrix)["func"] == "wrong"
        assert verdicts(found, matrix)["backpack"] == "right"
    assert verdicts(found, "Hessian")["func"] == "right"  # no forward mode in it


def test_intended_surrogate_is_not_called_wrong() -> None:
    """It is not called right either: of what is it the derivative?"""
    found = models.of(models.around(models.Through))
    assert {t.verdict for t in found.trials if t.works} == {"unchecked"}
    for matrix in ("Hessian", "GGN", "EF"):
        why = "not proven: the gradient is not that of the loss"
        assert found.forecast(matrix).proof == why
        assert found.trial(matrix, "backpack").reason == why
        assert found.trial(matrix, "backpack").error is None
    assert not found.is_ready
    assert f"backpack, is {why}" in " ".join(str(found).split())
    (what,) = [w for w in models.cautions(found) if "gradient is not that" in w]
    assert models.cautions(found)[what] == "care"


def test_dropout_is_random() -> None:
    build = lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))  # noqa: E731
    found = models.of(seeded(build, torch.float32).train())
    assert not found.is_ready
    assert {t.verdict for t in found.trials if t.works} == {"random"}
    assert found.trial("Hessian", "func").noise > 0.01
    assert found.forecast("GGN").way is None
    assert "NonDeterministicError" in found.forecast("GGN").reason
    assert "dropout is on" in models.cautions(found)


@pytest.mark.parametrize("model", [models.Broken(), models.Detached()])
def test_everything_fails(model: nn.Module) -> None:
    found = models.of(model)
    assert not found.is_ready
    assert "right" not in {t.verdict for t in found.trials if t.matrix != "Hessian"} or (
        isinstance(model, models.Detached)
    )
    assert any(c.severity == "stop" for c in found.cautions)
    assert str(found)
    if isinstance(model, models.Broken):
        assert {t.verdict for t in found.trials} <= {"fails", "declined"}
        assert found.trial("GGN", "func").reason == "RuntimeError: no kernel for this"


def test_backward_that_raises() -> None:
    found = models.of(models.InPlace())
    assert not found.is_ready
    assert "right" not in {t.verdict for t in found.trials}
    assert "modified by an inplace operation" in found.trial("GGN", "backpack").reason


def test_not_finite() -> None:
    model = models.mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    found = models.of(model)
    assert not found.is_ready
    assert not {"right", "rough"} & {t.verdict for t in found.trials}
    assert set(models.where(found, "not finite")) >= {"0.weight", "loss", "gradient"}


# --------------------------------------------------------------------- precision


def test_half_precision() -> None:
    model = models.mlp(torch.bfloat16)
    found = models.of(model, models.data(torch.bfloat16))
    trial = found.trial("Hessian", "func")
    assert trial.verdict == "right"
    assert 1e-4 < trial.error < 2e-2
    assert "half-precision parameters" in models.cautions(found)


def test_rounding_is_told_from_error() -> None:
    """Differences of large numbers: single precision has few digits left of them."""
    found = models.of(models.around(cancelling(15.0)))
    for way in ("func", "backpack", "graphs", "recorded"):
        trial = found.trial("Hessian", way)
        assert trial.verdict == "rough"
        assert trial.reason == "rounding leaves 3 digits; in float64 it is right"
        assert 1e-4 < trial.error < 1e-3
    assert found.is_ready


def test_rounding_that_leaves_nothing_to_compare_with() -> None:
    """Not even double precision has the digits for differences."""
    found = models.of(models.around(cancelling(1e3)))
    assert verdicts(found, "Hessian")["func"] == "unchecked"
    assert "do not converge in float64" in found.trial("Hessian", "func").reason
    assert found.references[0].method is None
    assert "InaccurateError" in found.trial("Hessian", "differences").reason
    assert not found.is_ready


def cancelling(big: float) -> Callable[[Tensor], Tensor]:
    """``x³``, as a difference of large numbers."""
    return lambda x: (x + big) ** 3 - big**3 - 3 * big**2 * x - 3 * big * x**2


def test_mixed_precision() -> None:
    model = models.mlp()
    model[2].double()

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, X: Tensor) -> Tensor:
            h = self.inner[1](self.inner[0](X.to(self.inner[0].weight.dtype)))
            return self.inner[2](h.to(self.inner[2].weight.dtype))

    batches = [(X, y.double()) for X, y in models.data()]
    found = models.of(Mixed(), batches)
    assert found.is_ready, str(found)
    assert found.dtype == "float64"
    assert "parameters of several types" in models.cautions(found)


# ---------------------------------------------------------------- numbers, choice


def test_figures_are_consistent() -> None:
    found = models.of_mlp()
    assert found.gradient_seconds > 0
    assert found.gradient_bytes > 0
    assert found.num_parameters == 26
    assert (found.sample_size, found.num_data, found.num_batches) == (6, 10, 2)
    for t in found.trials:
        assert t.works == (t.seconds is not None)
        if t.works:
            assert t.gradients == pytest.approx(t.seconds / found.gradient_seconds)
            assert t.peak_gradients == pytest.approx(t.peak_bytes / found.gradient_bytes)
            assert t.asymmetry < 1e-5
            assert t.noise == 0
            assert t.peak_bytes >= 26 * 4  # the product itself
        else:
            assert t.reason
    for f in found.forecasts:
        assert f.seconds > 0
        assert f.linearized_seconds > 0
        assert f.linearized_bytes > 0
        chosen = {t.way for t in found.trials if t.matrix == f.matrix and t.is_chosen}
        assert chosen == {f.way, f.form}
    assert 0 < found.seconds < 60


def test_forecast_grows_with_the_data() -> None:
    """Three hundred times the batches, of which only their number is known."""
    model, loss = models.mlp(), nn.MSELoss()
    params = list(model.parameters())
    batches = models.data()[:1]
    few = preflight(model, loss, params, batches, num_data=6, max_seconds=30)
    many = preflight(model, loss, params, Many(batches[0], 300), max_seconds=30)
    assert many.num_data == 1800
    for matrix in ("Hessian", "GGN"):
        a, b = few.forecast(matrix), many.forecast(matrix)
        assert 3 < b.seconds / a.seconds < 3000
        assert b.linearized_bytes > 100 * a.linearized_bytes


class Many:
    """A batch, many times."""

    def __init__(self, batch: Any, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Any:
        return (self.batch for _ in range(self.times))


def test_unknown_number_of_data() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(models.data())

    found = models.of(models.mlp(), Stream())
    assert found.is_ready
    assert found.num_data is None
    assert found.forecast("GGN").seconds is None
    assert "num_data" in found.forecast("GGN").reason


def test_loss_without_terms_has_no_empirical_fisher() -> None:
    found = models.of(models.mlp(), loss=nn_free_mean, reduction="mean")
    assert found.is_ready
    assert verdicts(found, "EF") == dict.fromkeys(verdicts(found, "GGN"), "undefined")
    assert [f.matrix for f in found.forecasts] == ["Hessian", "GGN"]


def nn_free_mean(prediction: Tensor, y: Tensor) -> Tensor:
    return ((prediction - y) ** 2).sum(1).mean()


def test_out_of_time() -> None:
    found = models.looked_at(models.mlp())
    assert {t.verdict for t in found.trials} == {"skipped"}
    assert not found.is_ready
    assert all("max_seconds" in t.reason for t in found.trials)


def test_loss_whose_kernel_has_no_second_derivative() -> None:
    """The operators compose it; differences need none."""
    model = models.mlp()
    batches = [(X, classes(2, len(X))) for X, _ in models.data()]
    found = models.of(model, batches, nn.MultiMarginLoss(p=2))
    assert found.is_ready, str(found)
    assert found.references[0].method == "finite differences"
    assert found.references[0].doubt is None
