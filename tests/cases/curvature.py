"""Every model x every curvature matrix x every way to differentiate."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    LinearOperator,
    TransposedJacobianLinearOperator,
)
from tests.cases import attention, awkward, layers, parameterizations, structures, truth
from tests.cases.case import Case
from tests.cases.problem import Problem

KINDS: dict[str, type[LinearOperator]] = {
    "hessian": HessianLinearOperator,
    "ggn": GGNLinearOperator,
    "ggn-mc": GGNLinearOperator,
    "ef-term": EFLinearOperator,
    "ef-example": EFLinearOperator,
    "ef-output": EFLinearOperator,
    "jacobian": JacobianLinearOperator,
    "transposed_jacobian": TransposedJacobianLinearOperator,
}
RISK = ("hessian", "ggn", "ef-output")
ALL = (*RISK, "jacobian")
EVERY_EF = (*ALL, "transposed_jacobian", "ef-example", "ef-term")
SAMPLED = (*ALL, "ggn-mc")


@dataclass(frozen=True)
class Model:
    """A problem, and what can be made of it.

    Attributes:
        build: ``dtype -> problem``, always the same.
        matrices: What is defined for it.
        ways: How it can be differentiated.
        falls_back: Whether "auto" must leave ``torch.func``, with one warning.
    """

    build: Callable[[torch.dtype], Problem]
    matrices: tuple[str, ...] = ALL
    ways: tuple[str, ...] = ("func", "backpack")
    falls_back: bool = False

    @property
    def name(self) -> str:
        """What identifies it."""
        return self.build.__name__


NOT_FUNC = ("backpack", "auto")

MODELS = (
    Model(parameterizations.mlp, SAMPLED, ways=("func", "backpack", "auto")),
    Model(parameterizations.mlp_sum),
    Model(parameterizations.regression, (*EVERY_EF, "ggn-mc")),
    Model(parameterizations.multilabel, SAMPLED),
    Model(parameterizations.functional),
    Model(parameterizations.closure, ways=NOT_FUNC),
    Model(parameterizations.frozen),
    Model(parameterizations.tied),
    Model(parameterizations.unused),
    Model(parameterizations.called_twice),
    Model(parameterizations.scalar_parameter),
    Model(structures.dict_inputs),
    Model(structures.user_dict_inputs),
    Model(structures.nested_tuple_inputs),
    Model(structures.dict_targets),
    Model(structures.tuple_prediction, RISK),
    Model(structures.dict_prediction, ("hessian", "ggn")),
    Model(structures.one_dimensional_output),
    Model(structures.sequence_output, (*EVERY_EF, "ggn-mc")),
    Model(structures.sequence_regression, EVERY_EF),
    Model(layers.conv),
    Model(layers.conv_group_norm),
    Model(layers.max_pool),
    Model(layers.layer_norm, (*ALL, "transposed_jacobian")),
    Model(layers.rms_norm),
    Model(layers.group_norm),
    Model(layers.instance_norm),
    Model(layers.batch_norm_eval),
    Model(layers.batch_norm_train),
    Model(layers.embedding),
    Model(layers.gru),
    Model(layers.lstm),
    Model(attention.scaled_dot_product),
    Model(attention.multihead, (*ALL, "transposed_jacobian")),
    Model(attention.multihead_eval),
    Model(attention.transformer_encoder_eval),
    Model(awkward.custom_function, EVERY_EF, ways=NOT_FUNC, falls_back=True),
    Model(awkward.counter),
    Model(awkward.running_average),
    Model(awkward.checkpointed, ways=NOT_FUNC, falls_back=True),
    Model(awkward.checkpointed_frozen, ways=NOT_FUNC, falls_back=True),
)


def operator(problem: Problem, matrix: str, **options: Any) -> LinearOperator:
    """The operator of this name for a problem."""
    options = {**problem.options, **options}
    if matrix.startswith("ef"):
        options["per"] = matrix.removeprefix("ef-")
    if matrix == "ggn-mc":
        options["mc_samples"] = truth.MC_SAMPLES
    if "jacobian" in matrix:
        return KINDS[matrix](problem.model, problem.params, problem.data, **options)
    return KINDS[matrix](
        problem.model, problem.loss, problem.params, problem.data, **options
    )


@functools.cache
def dense(build: Callable[[torch.dtype], Problem], matrix: str) -> Tensor:
    """The truth, once for all ways to differentiate."""
    return truth.dense(build(torch.float64), matrix)


def cases() -> Iterator[Case]:
    """Each model with each matrix, differentiated in each way."""
    for model in MODELS:
        for matrix in model.matrices:
            for way in _ways(model, matrix):
                yield _case(model, matrix, way)


def _ways(model: Model, matrix: str) -> Sequence[str]:
    """The transposed Jacobian is what the Jacobian's transpose is: one way will do."""
    return model.ways[:1] if matrix == "transposed_jacobian" else model.ways


def _case(model: Model, matrix: str, way: str) -> Case:
    def build(dtype: torch.dtype, **options: Any) -> LinearOperator:
        must_warn = model.falls_back and way == "auto"
        if must_warn:  # on construction, once, by the check
            options["check_deterministic"] = True
        make = functools.partial(
            operator, model.build(dtype), matrix, differentiation=way, **options
        )
        return falling_back(make) if must_warn else make()

    is_risk = "jacobian" not in matrix
    first = model.ways[0]
    return Case(
        f"{model.name}-{matrix}-{way}",
        KINDS[matrix],
        build,
        functools.partial(dense, model.build, matrix),
        ("chunk_size", "block_sizes") if is_risk else ("chunk_size",),
        variant_of=None if way == first else f"{model.name}-{matrix}-{first}",
    )


def falling_back(make: Callable[[], LinearOperator]) -> LinearOperator:
    """Build an operator that must warn once that torch.func does not do."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        A = make()
    (message,) = [str(w.message) for w in caught]
    assert message.startswith("torch.func does not support this model")
    return A
