"""What needs care, one case for each rule, and none where nothing does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from curvop.inspection import preflight
from tests.cases import attention, awkward, layers, parameterizations, structures
from tests.inspection import models
from tests.inspection.models import cautions, looked_at, of_problem, where

X, Y = (torch.cat(parts) for parts in zip(*models.data(), strict=True))
ONE = [(X, Y)]
QUICK = {"max_seconds": 1e-6}


def net(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), *between, nn.Linear(4, 2))


def test_nothing_needs_care() -> None:
    assert looked_at(models.mlp(), ONE).cautions == ()


# ----------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        nn.TransformerEncoderLayer(4, 2, 4, dropout=0.5, batch_first=True),
    ],
)
def test_dropout(layer: nn.Module) -> None:
    found = looked_at(net(layer), ONE)
    assert cautions(found)["dropout is on"] == "stop"
    assert where(found, "dropout")[0].startswith("1")
    found = looked_at(net(layer).eval(), ONE)
    assert "dropout is on" not in cautions(found)


def test_functional_dropout() -> None:
    class Net(nn.Linear):
        def forward(self, X: Tensor) -> Tensor:
            return F.dropout(super().forward(X), 0.5, self.training)

    found = looked_at(Net(3, 2), ONE)
    assert cautions(found)["dropout is on"] == "stop"
    assert looked_at(Net(3, 2).eval(), ONE).cautions == ()


def test_randomness_of_another_kind() -> None:
    class Noise(nn.Linear):
        def forward(self, X: Tensor) -> Tensor:
            return super().forward(X + torch.randn_like(X))

    found = looked_at(Noise(3, 2), ONE)
    assert cautions(found) == {
        "loss or gradient differ from one evaluation to the next": "stop"
    }


def test_batch_norm_in_train_mode() -> None:
    found = looked_at(net(nn.BatchNorm1d(4)), ONE)
    assert cautions(found) == {
        "batch norm normalises with the statistics of each batch": "care",
        "running statistics are updated by a forward pass": "note",
    }
    assert where(found, "batch norm") == ("1 (BatchNorm1d)",)
    assert set(where(found, "running")) == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    assert looked_at(net(nn.BatchNorm1d(4)).eval(), ONE).cautions == ()


@pytest.mark.parametrize("build", [awkward.counter, awkward.running_average])
def test_buffers_written_in_forward(build: Any) -> None:
    found = of_problem(build(torch.float32), **QUICK)
    assert cautions(found)["buffers are written in the forward pass"] == "note"
    assert set(where(found, "buffers")) <= {"calls", "data", "average"}


@pytest.mark.parametrize(
    "build",
    [attention.scaled_dot_product, attention.multihead, attention.transformer_encoder_eval],
)
def test_fused_attention(build: Any) -> None:
    found = of_problem(build(torch.float32), **QUICK)
    assert cautions(found)["fused attention has no second derivatives"] == "note"


def test_custom_functions() -> None:
    found = looked_at(models.around(models.RightCube), ONE)
    assert cautions(found) == {"custom autograd function": "note"}
    (caution,) = found.cautions
    assert caution.where == ("RightCube",)
    assert "setup_context and jvp" in caution.remedy


def test_custom_function_with_a_wrong_second_derivative() -> None:
    found = looked_at(models.around(models.WrongCube), ONE)
    assert where(found, "second derivatives by autograd are wrong") == ("WrongCube",)
    assert found.cautions[0].severity == "care"  # differences are taken
    assert "(Hessian)" in found.cautions[0].what


def test_re_entrant_checkpointing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, X: Tensor) -> Tensor:
            h = checkpoint(torch.tanh, self.first(X), use_reentrant=True)
            return self.last(h)

    found = looked_at(Net(), ONE)
    assert cautions(found)["re-entrant activation checkpointing"] == "stop"


def test_detached() -> None:
    class Net(nn.Linear):
        def forward(self, X: Tensor) -> Tensor:
            h = super().forward(X)
            return h * h.detach()

    found = looked_at(Net(3, 2), ONE)
    (what,) = cautions(found)
    assert what.startswith("the gradient is not that of the loss")


def test_model_that_cannot_be_evaluated() -> None:
    found = looked_at(models.Broken(), ONE)
    (what,) = cautions(found)
    assert what.endswith("RuntimeError: no kernel for this")


def test_wrapped() -> None:
    found = looked_at(nn.DataParallel(models.mlp()), ONE)
    assert cautions(found) == {"the model is wrapped": "note"}


# ------------------------------------------------------------------ the parameters


def test_unused() -> None:
    found = of_problem(parameterizations.unused(torch.float32), **QUICK)
    assert where(found, "does not depend") == ("never.weight", "never.bias")
    assert cautions(found)["parameters that the loss does not depend on"] == "care"


def test_all_unused() -> None:
    found = looked_at(models.Detached(), ONE)
    assert cautions(found)["parameters that the loss does not depend on"] == "stop"


def test_tied() -> None:
    found = of_problem(parameterizations.tied(torch.float32), **QUICK)
    assert where(found, "tied") == ("encoder.weight = decoder.weight",)


def test_parameters_that_were_not_passed() -> None:
    found = of_problem(parameterizations.frozen(torch.float32), **QUICK)
    assert where(found, "not passed") == ("0.bias",)


def test_frozen_parameters_that_were_passed() -> None:
    model = models.mlp()
    model[0].weight.requires_grad_(False)
    found = looked_at(model, ONE)
    assert where(found, "frozen") == ("0.weight",)


def test_precision() -> None:
    model = models.mlp()
    model[0].bfloat16()
    found = preflight(
        lambda X: model[2](model[0](X.bfloat16()).float()),
        nn.MSELoss(),
        list(model.parameters()),
        ONE,
        **QUICK,
    )
    assert cautions(found) == {
        "parameters of several types": "care",
        "half-precision parameters": "care",
    }
    assert where(found, "half") == ("params[0]", "params[1]")


def test_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = looked_at(models.mlp(), ONE)
    assert "automatic mixed precision is on" in cautions(found)


@pytest.mark.parametrize("what", ["inputs", "targets", "0.weight"])
def test_not_finite(what: str) -> None:
    model, inputs, targets = models.mlp(), X.clone(), Y.clone()
    bad = {"inputs": inputs, "targets": targets, "0.weight": model[0].weight.data}
    bad[what][0, 0] = torch.inf if what == "inputs" else torch.nan
    found = looked_at(model, [(inputs, targets)])
    assert what in where(found, "not finite")
    assert found.cautions[0].severity == "stop"


# ------------------------------------------------------------------- loss and data


def mean(prediction: Tensor, y: Tensor) -> Tensor:
    return ((prediction - y) ** 2).sum(1).mean()


def total(prediction: Tensor, y: Tensor) -> Tensor:
    return ((prediction - y) ** 2).sum()


def neither(prediction: Tensor, y: Tensor) -> Tensor:
    return ((prediction - y) ** 2).sum() / (1 + y.sum() ** 2)


@pytest.mark.parametrize(
    ("loss", "says"), [(mean, "'mean'"), (total, "'sum'"), (neither, "callable")]
)
def test_loss_without_known_reduction(loss: Any, says: str) -> None:
    found = looked_at(models.mlp(), ONE, loss)
    (caution,) = found.cautions
    assert caution.what == "the loss does not tell its reduction"
    assert says in caution.remedy
    assert caution.severity == "stop"


def test_loss_that_breaks_its_word() -> None:
    found = looked_at(models.mlp(), ONE, neither, reduction="mean")
    (caution,) = found.cautions
    assert caution.what == "the loss is not what it says"
    assert "is no mean over examples" in caution.remedy
    assert looked_at(models.mlp(), ONE, mean, reduction="mean").cautions == ()


def test_one_shot_data() -> None:
    batches = iter(models.data())
    found = looked_at(models.mlp(), batches)
    assert cautions(found) == {"the data is a one-shot iterator": "stop"}
    assert len(list(batches)) == 1  # one was taken, as the caution says


def test_uneven_batches() -> None:
    found = looked_at(models.mlp(), models.data())
    assert cautions(found) == {"batches differ in size": "note"}
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    assert "batches differ in size" in cautions(looked_at(models.mlp(), loader))
    for options in ({"batch_size": 5}, {"batch_size": 4, "drop_last": True}):
        loader = DataLoader(TensorDataset(X, Y), **options)
        assert looked_at(models.mlp(), loader).cautions == ()


def test_random_augmentation() -> None:
    class Augmented(Dataset[Any]):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, i: int) -> Any:
            return X[i] + torch.randn(3), Y[i]

    found = looked_at(models.mlp(), DataLoader(Augmented(), batch_size=5))
    assert cautions(found) == {"the data differs from pass to pass": "stop"}


# ----------------------------------------------------------------- the sample


def test_ignored_targets_in_the_sample() -> None:
    """The first eight have no target: the whole batch is taken."""
    y = torch.tensor([-100] * 8 + [0, 1])
    found = looked_at(models.mlp(), [(X, y)], nn.CrossEntropyLoss())
    assert found.cautions == ()
    assert found.sample_size == 10


def test_counting() -> None:
    def counts(batches: Any, **options: Any) -> Any:
        found = looked_at(models.mlp(), batches, **options)
        return found.sample_size, found.num_data, found.num_batches

    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    assert counts(models.data(), sample_size=3) == (3, 10, 2)
    assert counts(loader) == (4, 10, 3)
    dropping = DataLoader(TensorDataset(X, Y), batch_size=4, drop_last=True)
    assert counts(dropping) == (4, 8, 2)
    shuffled = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    assert counts(shuffled) == (4, 10, 3)
    assert counts(iter(models.data())) == (6, None, None)
    assert counts(iter(models.data()), num_data=10) == (6, 10, None)


def test_batches_that_cannot_be_cut() -> None:
    problem = structures.dict_inputs(torch.float32)
    problem.X["mask"] = torch.ones(3, 3)
    found = preflight(
        problem.model,
        problem.loss,
        problem.params,
        [(problem.X, problem.y)],
        sample_size=2,
        **QUICK,
    )
    assert found.sample_size == 5


def test_layers_that_need_no_care() -> None:
    for build in (layers.conv_group_norm, layers.gru, parameterizations.scalar_parameter):
        found = of_problem(build(torch.float32), **QUICK)
        assert set(cautions(found)) == {"batches differ in size"}
