"""The one door to linearised operators: the cheapest form that gives the right product."""

from __future__ import annotations

import time

from curvop.curvature import (
    CurvatureLinearOperator,
    DifferentiatedLinearOperator,
    Form,
    JacobianLinearOperator,
    LinearizedLinearOperator,
    Products,
)
from curvop.linearized import stacked, summed
from curvop.linearized.budget import Budget
from curvop.operators import Blocks


def linearize(
    op: DifferentiatedLinearOperator,
    *,
    memory_budget: int | None,
    num_products: int,
    batch_size: int | None,
    compile: bool | str,
) -> LinearizedLinearOperator:
    """Implements :meth:`DifferentiatedLinearOperator.linearize`."""
    budget = Budget.asked_for(memory_budget, num_products, batch_size, compile)
    start = time.perf_counter()
    form: Form
    products: Products
    if isinstance(op, CurvatureLinearOperator):
        form, products = summed.first_form(op, budget)
    else:
        assert isinstance(op, JacobianLinearOperator)  # those are all that there are
        form, products = stacked.first_form(op, budget)
    seconds = time.perf_counter() - start
    return _operator(op, products, form, seconds)


def linearized_as(
    form: Form, op: CurvatureLinearOperator, v: Blocks
) -> LinearizedLinearOperator:
    """The linearised operator of this form, whether or not ``linearize`` would take it.

    Args:
        form: The form.
        op: The operator.
        v: A column to derive it with, ``[1, *n_i]``.

    Raises:
        NotFactorableError: If the matrix does not have this form, or it would not pay.
    """
    return _operator(op, summed.of_form(form, op, v), form, 0.0)


def _operator(
    op: DifferentiatedLinearOperator, products: Products, form: Form, seconds: float
) -> LinearizedLinearOperator:
    at = op.risk.parameters
    return LinearizedLinearOperator(op, at, op.chunk_size, products, form, seconds)


def origin(H: object, who: str) -> CurvatureLinearOperator:
    """The curvature operator that knows model, loss and data.

    Raises:
        TypeError: If there is none.
    """
    op = H.origin if isinstance(H, LinearizedLinearOperator) else H
    if not isinstance(op, CurvatureLinearOperator):
        raise TypeError(
            f"{who} needs a curvature operator such as HessianLinearOperator(model, "
            f"loss_func, params, data), which knows model and data; got {type(H).__name__}."
        )
    return op
