"""Every curvature matrix of every model, linearised."""

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
# what make_fx cannot record keeps autograd's graphs, with a warning
NOT_RECORDED = ("custom_function", "checkpointed")


def cases() -> Iterator[Case]:
    """Each route for a few models, the recorded one for all."""
    for model in MODELS:
        thorough = model.name in ("mlp", "closure", "layer_norm", "regression")
        for matrix in (m for m in model.matrices if m in RISK):
            for route in ROUTES if thorough else ("recorded",):
                yield _case(model, matrix, route)


def _case(model: Model, matrix: str, route: str) -> Case:
    def build(dtype: torch.dtype, **options: Any) -> LinearOperator:
        with warnings.catch_warnings():
            if model.falls_back or model.name in NOT_RECORDED:
                warnings.simplefilter("ignore")
            A = operator(model.build(dtype), matrix, **options)
            return A.linearize(**ROUTES[route])

    return Case(
        f"{model.name}-{matrix}-linearized-{route}",
        LinearizedLinearOperator,
        build,
        functools.partial(dense, model.build, matrix),
        ("block_sizes",) if model.name in ("mlp", "layer_norm") else (),
    )
