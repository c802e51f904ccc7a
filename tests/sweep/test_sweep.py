"""Every layer and function of torch, in every way: products are right, or refused."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator

from torch import Tensor

from curvop import (
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    LinearOperator,
)
from tests.cases.problem import Problem
from tests.comparing import error

from . import functions
from .truth import Truth, truth

TOLERANCE = 1e-6  # what a way is proven to
REFUSALS = (RuntimeError, NotImplementedError, ValueError)
CASES = {case.name: case for case in functions.cases()}
# What "auto" may refuse, and why.
MAY_REFUSE: dict[str, str] = {}
Multiply = Callable[[LinearOperator, Truth, int], tuple[Tensor, Tensor]]


@functools.cache
def solved(name: str) -> tuple[Problem, Truth]:
    """The problem, and its products by differences."""
    case = CASES[name]
    return case.build(), truth((case.reference or case.build)())


def curvature(A: LinearOperator, t: Truth, K: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Products of the Hessian or of the GGN with those that are true."""
    true = t.hessian if isinstance(A, HessianLinearOperator) else t.ggn
    yield A @ t.V[:, :K], true[:, :K]


class Refused(Exception):  # noqa: N818
    """An operator says that it cannot."""


def matrices(problem: Problem, t: Truth, way: str) -> Iterator[tuple[str, Callable]]:
    """What builds each operator, with its true products."""
    data, params = problem.data, problem.params
    options = {"differentiation": way}
    risk = (problem.model, problem.loss, params, data)

    def hessian() -> LinearOperator:
        return HessianLinearOperator(*risk, **options, **problem.options)

    def ggn() -> LinearOperator:
        return GGNLinearOperator(*risk, **options, **problem.options)

    def jacobian() -> LinearOperator:
        return JacobianLinearOperator(problem.model, params, data, **options)

    yield "hessian", hessian, ((lambda A: A), t.V, t.hessian)
    yield "ggn", ggn, ((lambda A: A), t.V, t.ggn)
    yield "jacobian", jacobian, ((lambda A: A), t.V, t.jacobian)


def errors(name: str, way: str, forms: tuple[str, ...]) -> dict[str, float | str]:
    """Relative errors of all products, or what was said instead."""
    problem, t = solved(name)
    found: dict[str, float | str] = {}
    for kind, build, (_, M, true) in matrices(problem, t, way):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                A = build()
        except REFUSALS as e:
            found[kind] = str(e).split("\n")[0]
            continue
        for form, K in itertools.product(forms, (3, 1)):
            label = f"{kind} {form} {K}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    B = A if form == "plain" else A.linearize()
                    found[label] = error(B @ M[:, :K], true[:, :K])
                    if kind == "jacobian":
                        got = B.T @ t.U[:, :K]
                        found[label + " transposed"] = error(got, t.transposed[:, :K])
            except REFUSALS as e:
                found[label] = str(e).split("\n")[0]
    return found
