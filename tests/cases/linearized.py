"""Curvature matrices, linearised."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from curvop import LinearizedLinearOperator, LinearOperator
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


def _case(model: Model, matrix: str, route: str, **options: Any) -> Case:
    may_warn = model.falls_back or model.name in NOT_RECORDED

    def build(dtype: torch.dtype, **options: Any) -> LinearOperator:
        with warnings.catch_warnings():
            if may_warn:
                warnings.simplefilter("ignore")
            A = operator(model.build(dtype), matrix, **options)
            return A.linearize(**ROUTES[route])

    return Case(
        f"{model.name}-{matrix}-linearized-{route}",
        LinearizedLinearOperator,
        build,
        functools.partial(dense, model.build, matrix),
        ("block_sizes",) if model.name in THOROUGH else (),
        **options,
    )
