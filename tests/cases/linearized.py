"""Curvature matrices, linearised."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from curvop import (
    LinearizedLinearOperator,
    LinearOperator,
)
from curvop.linearized import factored
from curvop.operators import TransposedLinearOperator
from tests.cases.case import Case
from tests.cases.curvature import MODELS, RISK, Model, dense, operator

# how to arrive at the matrix: recorded, within no budget at all, by autograd's graphs
ROUTES = {
    "recorded": {},
    "recomputed": {"memory_budget": 0},
    "graphs": {"num_products": 1},
}
# recording takes longer than all else: every matrix and route of few models, and the
# Hessian of those that do what recording could get wrong
THOROUGH = {"mlp": RISK, "layer_norm": ("hessian",), "closure": ("ggn",)}
RECORDED = (
    "functional",
    "frozen",
    "tied",
    "unused",
    "nested_tuple_inputs",
    "dict_prediction",
    "sequence_output",
    "conv_group_norm",
    "conv",
    "max_pool",
    "rms_norm",
    "instance_norm",
    "batch_norm_train",
    "embedding",
    "lstm",
    "multihead",
    "custom_function",
    "counter",
    "checkpointed_frozen",
)
# GGN and empirical Fisher without a pass through the network
FORMS = {
    "rows": (
        "mlp",
        "regression",
        "tied",
        "unused",
        "called_twice",
        "nested_tuple_inputs",
        "tuple_prediction",
        "sequence_output",
        "conv_group_norm",
        "layer_norm",
        "embedding",
        "multihead",
    ),
    "factored": (
        "mlp_sum",
        "multilabel",
        "frozen",
        "tied",
        "called_twice",
        "one_dimensional_output",
        "sequence_output",
        "sequence_regression",
        "conv",
        "max_pool",
        "scaled_dot_product",
        "custom_function",
        "running_average",
    ),
}
JACOBIANS = (
    "mlp",
    "functional",
    "closure",
    "tied",
    "unused",
    "sequence_regression",
    "layer_norm",
    "conv",
    "custom_function",
)
# what make_fx cannot record keeps autograd's graphs, with a warning
NOT_RECORDED = ("counter",)


def cases() -> Iterator[Case]:
    """Each route for a few models, recorded Hessians for some."""
    for model in MODELS:
        for matrix in THOROUGH.get(model.name, ()):
            for route in ROUTES:
                yield _case(model, matrix, route)
        if model.name in RECORDED:
            yield _case(model, "hessian", "recorded", variant_of="mlp-hessian-func")
        for matrix in ("jacobian", "transposed_jacobian"):
            if model.name in JACOBIANS and matrix in model.matrices:
                yield _case(model, matrix, "recorded")
                yield _case(model, matrix, "recomputed", variant_of="mlp-jacobian-func")
                yield _case(model, matrix, "graphs", variant_of="mlp-jacobian-func")
        for form, names in FORMS.items():
            for matrix in ("ggn", "ef-output", "ef-term", "ef-example"):
                if model.name in names and matrix in model.matrices:
                    yield _case(model, matrix, form, variant_of="mlp-hessian-func")


def linearized_as(A: Any, form: str) -> LinearizedLinearOperator:
    """Linearised in this form although the matrix is too small for it to pay."""
    limit = factored.ROWS_BYTES if form == "rows" else -1
    with (
        mock.patch.object(factored, "ROWS_BYTES", limit),
        mock.patch.object(factored, "STREAM", 0),
    ):
        linearized = A.linearize()
    assert linearized.form == form
    return linearized


def _case(model: Model, matrix: str, route: str, **options: Any) -> Case:
    may_warn = model.falls_back or model.name in NOT_RECORDED

    def build(dtype: torch.dtype, **options: Any) -> LinearOperator:
        with warnings.catch_warnings():
            if may_warn:
                warnings.simplefilter("ignore")
            A = operator(model.build(dtype), matrix, **options)
            if route in ROUTES:
                return A.linearize(**ROUTES[route])
            return linearized_as(A, route)

    kind: type[LinearOperator] = LinearizedLinearOperator
    if matrix == "transposed_jacobian":
        kind = TransposedLinearOperator
    has_blocks = matrix in THOROUGH.get(model.name, ()) and route in ROUTES
    return Case(
        f"{model.name}-{matrix}-linearized-{route}",
        kind,
        build,
        functools.partial(dense, model.build, matrix),
        ("block_sizes",) if has_blocks else (),
        **options,
    )
