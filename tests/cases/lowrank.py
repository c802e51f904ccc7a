"""Matrices in factor form, their factors, and their inverses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop import (
    FactorColumnsLinearOperator,
    GramInverseLinearOperator,
    LinearOperator,
)
from curvop.lowrank import GramFactor
from tests.cases import curvature, truth
from tests.cases.case import Case
from tests.cases.problem import Problem

DAMPING = 0.3
SMALL = 4100  # bytes: the columns of few data

# linear layers only, others besides, positions, coupled data, and every kind of datum
MODELS = (
    "mlp",
    "regression",
    "closure",
    "tied",
    "called_twice",
    "sequence_output",
    "conv_group_norm",
    "batch_norm_train",
    "multihead",
    "checkpointed",
    "dict_inputs",
)
MATRICES = ("ggn", "ef-output", "ef-term", "ef-example")


@dataclass(frozen=True)
class Form:
    """What is made of a factor.

    Attributes:
        kind: The class.
        make: ``factor -> operator``.
        dense: The same, of the dense matrix.
    """

    kind: type[LinearOperator]
    make: Callable[[GramFactor], LinearOperator]
    dense: Callable[[Tensor], Tensor]


def _inverse(D: Tensor) -> Tensor:
    D = torch.linalg.inv(D + DAMPING * torch.eye(len(D), dtype=D.dtype))
    return (D + D.T) / 2


FORMS = {
    "factor": Form(GramFactor, lambda A: A, lambda D: (D + D.T) / 2),
    "inverse": Form(GramInverseLinearOperator, lambda A: A.inverse(DAMPING), _inverse),
}


def factor(problem: Problem, matrix: str, way: str, **options: Any) -> GramFactor:
    """The factor of a matrix of a problem."""
    A = curvature.operator(problem, matrix, differentiation=way, check_deterministic=False)
    F: GramFactor = A.factor(gram_dtype=torch.float64, **options)
    return F


def cases() -> Iterator[Case]:
    """Factors, kept and derived anew; inverses of the GGN; columns of one."""
    for model in curvature.MODELS:
        if model.name not in MODELS:
            continue
        for matrix in MATRICES:
            if matrix not in model.matrices:
                continue
            yield _case(model, matrix, "factor", FORMS["factor"])
            if matrix == "ggn":
                yield _case(model, matrix, "inverse", FORMS["inverse"])
            yield _case(model, matrix, "factor", FORMS["factor"], memory_budget=SMALL)
    yield _columns()


def _case(
    model: curvature.Model, matrix: str, name: str, form: Form, **options: Any
) -> Case:
    def build(dtype: torch.dtype) -> LinearOperator:
        return form.make(factor(model.build(dtype), matrix, model.ways[0], **options))

    def dense() -> Tensor:
        return form.dense(curvature.dense(model.build, matrix))

    title = f"{model.name}-{matrix}-{name}"
    return Case(
        f"{title}-anew" if options else title,
        form.kind,
        build,
        dense,
        variant_of=title if options else None,
    )


def _columns() -> Case:
    """``V`` of an empirical Fisher: gradients of the loss terms, over ``√Z``."""
    (model,) = (m for m in curvature.MODELS if m.name == "regression")

    def build(dtype: torch.dtype) -> LinearOperator:
        return factor(model.build(dtype), "ef-term", "func").V

    def dense() -> Tensor:
        problem = model.build(torch.float64)
        terms = truth.flat_terms(problem.loss)(problem.predict(), problem.y)
        G = truth.rows(terms, problem.tensors)
        return G.T / len(G) ** 0.5

    return Case("regression-ef-columns", FactorColumnsLinearOperator, build, dense)
