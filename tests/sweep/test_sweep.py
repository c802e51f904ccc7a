"""Every layer and function of torch, in every way: products are right, or refused.

Each case is multiplied in the way that is chosen by default; those that are about the ways
themselves in all of them. ``make sweep`` takes all forms of all.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor, nn

from curvop import (
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    LinearOperator,
)
from tests.cases.problem import Problem
from tests.comparing import error

from . import custom, functions, layers, losses, special_values
from .truth import COLUMNS, Truth, truth

TOLERANCE = 1e-6  # what a way is proven to
REFUSALS = (RuntimeError, NotImplementedError, ValueError)
# What "auto" may refuse, and why.
MAY_REFUSE: dict[str, str] = {}

THEMES = (layers, functions, losses, custom, special_values)
FOUND = [case for theme in THEMES for case in theme.cases()]
CASES = {case.name: case for case in FOUND}
ABOUT_WAYS = [case.name for theme in (custom, special_values) for case in theme.cases()]
KINDS = ("hessian", "ggn", "jacobian")
# What no way supports with torch's own kernels, or only one, and each with composed ones.
COMPOSED = (
    "nn.CTCLoss",
    "nn.EmbeddingBag",
    "nn.EmbeddingBag max",
    "nn.EmbeddingBag sum",
    "nn.Hardsigmoid",
    "nn.Linear weight_norm",
    "nn.Conv2d weight_norm",
    "nn.RReLU",
    "F.ctc_loss",
    "F.pdist",
    "cdist",
    "cdist of zero rows",
    "cholesky",
    "cholesky_inverse",
    "det of zeros",
    "F.lp_pool1d of zeros",
    "F.normalize of a zero row",
    "index_reduce mean",
    "index_reduce prod",
    "logaddexp far apart",
    "logcumsumexp",
    "norm of a zero row",
    "scatter_reduce prod",
    "segment_reduce",
    "sinc at 0",
    "sparse @",
    "sparse.addmm",
    "sparse.mm",
    "triangular_solve",
    "weight_norm",
)
FORMS = list(itertools.product(("func", "backpack", "differences"), ("plain",), KINDS))
# Recording takes most of a second: some cases, one matrix each.
LINEARIZED = [
    *zip(list(CASES)[::12], itertools.cycle(KINDS), strict=False),
    ("nn.AdaptiveLogSoftmaxWithLoss", "jacobian"),  # writes its output piece by piece
    ("ldexp", "ggn"),  # crashed the interpreter
]


long = pytest.mark.skipif("CURVOP_SWEEP" not in os.environ, reason="takes long: make sweep")


@functools.lru_cache(maxsize=1)
def solved(name: str) -> tuple[Problem, Truth]:
    """The problem, and its products by differences."""
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the functions swept
        return case.build(), truth((case.reference or case.build)())


def operator(problem: Problem, kind: str, way: str, form: str) -> LinearOperator:
    """The operator of this kind."""
    model, params, data = problem.model, problem.params, problem.data
    options: dict[str, Any] = {"differentiation": way, **problem.options}
    A: Any
    if kind == "hessian":
        A = HessianLinearOperator(model, problem.loss, params, data, **options)
    elif kind == "ggn":
        A = GGNLinearOperator(model, problem.loss, params, data, **options)
    else:
        A = JacobianLinearOperator(model, params, data, differentiation=way)
    return A if form == "plain" else A.linearize()


def products(A: LinearOperator, kind: str, t: Truth) -> Iterator[tuple[Tensor, Tensor]]:
    """Products of several columns and of one, and what they should be."""
    expected = {"hessian": t.hessian, "ggn": t.ggn, "jacobian": t.jacobian}[kind]
    for K in (COLUMNS, 1):
        yield A @ t.V[:, :K], expected[:, :K]
        if kind == "jacobian":
            yield A.T @ t.U[:, :K], t.transposed[:, :K]


def refusal(name: str, way: str, form: str, kind: str) -> str | None:
    """Check products, unless they are refused: then what is said."""
    problem, t = solved(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a change of the way is announced by one
        try:
            A = operator(problem, kind, way, form)
            pairs = list(products(A, kind, t))
        except REFUSALS as said:
            return str(said)
    worst = max(error(got, expected) for got, expected in pairs)
    assert worst <= TOLERANCE, f"{kind} of {name} ({way}, {form}): off by {worst:.1e}"
    return None


@long
@pytest.mark.parametrize("name", CASES)
def test_by_default(name: str) -> None:
    for kind in KINDS:
        said = refusal(name, "auto", "plain", kind)
        assert said is None or name in MAY_REFUSE, said


@long
@pytest.mark.parametrize("name", ABOUT_WAYS)
def test_other_ways(name: str) -> None:
    for form in FORMS:
        refusal(name, *form)


@long
@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("way", ["func", "backpack"])
def test_composed(name: str, way: str) -> None:
    for kind in ("hessian", "ggn"):
        assert refusal(name, way, "plain", kind) is None


@long
@pytest.mark.parametrize(("name", "kind"), LINEARIZED)
def test_linearized(name: str, kind: str) -> None:
    said = refusal(name, "auto", "linearized", kind)
    assert said is None or name in MAY_REFUSE, said


@long
@pytest.mark.parametrize("name", CASES)
def test_all_forms(name: str) -> None:
    for form in FORMS:
        refusal(name, *form)
    for kind in KINDS:
        refusal(name, "auto", "linearized", kind)


def test_names_are_unique() -> None:
    assert Counter(case.name for case in FOUND).most_common(1)[0][1] == 1
    assert len(FOUND) >= 300


def test_all_layers_are_swept() -> None:
    """A layer that a new version of torch brings is swept, or it is said why not."""
    public = {
        name
        for name, value in vars(nn).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    swept = {name.split()[0].removeprefix("nn.") for name in CASES}
    assert public - swept == set(layers.NOT_SWEPT) & public


def test_what_may_be_refused_is_swept() -> None:
    assert set(MAY_REFUSE) <= set(CASES)
