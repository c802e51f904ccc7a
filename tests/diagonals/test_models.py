"""Every model and every matrix: the diagonal is that of the dense truth."""

from __future__ import annotations

import pytest
import torch

from curvop import GGNLinearOperator
from curvop.diagonals.squared_gradients import ways_by_squared_gradients
from curvop.diagonals.ways import exact_diagonal
from tests.cases import curvature
from tests.cases.diagonals import KINDS, operator
from tests.comparing import TOLERANCE, error

# what cannot be taken apart: batch statistics couple the data
COUPLED = {"batch_norm_train", "checkpointed"}
# no layer whose weight is a parameter
NO_LAYERS = {"functional", "closure"}

# those that ways differ by
SOME = {
    "mlp",
    "functional",
    "closure",
    "frozen",
    "tied",
    "unused",
    "nested_tuple_inputs",
    "tuple_prediction",
    "sequence_output",
    "conv",
    "layer_norm",
    "batch_norm_train",
    "embedding",
    "multihead",
    "custom_function",
}

PAIRS = [(m, matrix) for m in curvature.MODELS for matrix in m.matrices if matrix in KINDS]


@pytest.mark.filterwarnings("ignore:torch.func does not support this model:UserWarning")
@pytest.mark.parametrize(
    ("model", "matrix"), PAIRS, ids=[f"{m.name}-{matrix}" for m, matrix in PAIRS]
)
def test_equals_the_dense_diagonal(model: curvature.Model, matrix: str) -> None:
    D = operator(model.build(torch.float64), matrix)
    truth = curvature.dense(model.build, matrix).diagonal()
    assert error(D.diagonal(), truth) <= TOLERANCE
    coupled, none = ("columns", "columns") if matrix == "hessian" else ("rows", "data")
    if model.name in COUPLED:
        assert D.form == coupled
    elif model.name in NO_LAYERS and matrix != "hessian":
        assert D.form == none
    else:
        assert D.form == "layers"


@pytest.mark.filterwarnings("ignore:torch.func does not support this model:UserWarning")
@pytest.mark.parametrize(
    "model", [m for m in curvature.MODELS if m.name in SOME], ids=lambda m: m.name
)
def test_every_way_is_right_or_refuses(model: curvature.Model) -> None:
    """Not only the quickest one: whatever passes the check equals the truth."""
    p = model.build(torch.float64)
    A = GGNLinearOperator(p.model, p.loss, p.params, p.data, **p.options)
    truth = curvature.dense(model.build, "ggn").diagonal()
    *ways, last = ways_by_squared_gradients()
    columns, form = exact_diagonal(A, (last,))
    assert form == "columns"
    assert error(torch.cat([b.flatten() for b in columns]), truth) <= TOLERANCE
    right = []
    for way in ways:
        blocks, form = exact_diagonal(A, (way, last))
        assert error(torch.cat([b.flatten() for b in blocks]), truth) <= TOLERANCE
        right.append(form == way.form)
    layers, data, _, _, rows = right
    assert rows
    assert data == (model.name not in {*COUPLED, "closure", "custom_function"})
    assert layers == (model.name not in {*COUPLED, *NO_LAYERS})
