"""The matrix of a report: an operator over the target, linearised for many products."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvop.curvature import CurvatureLinearOperator
from curvop.inspection import Problem
from curvop.operators import LinearOperator
from curvop.reporting.findings import MATRICES, Settings
from curvop.reporting.resources import free_memory
from curvop.risk import nested, tensors_in

EXPECTED_PRODUCTS = 800  # of a whole report, for the decision what to keep
FEW_PRODUCTS, SHORT = 20, 3.0  # for which, or seconds, there is no use in it
SHARE_OF_MEMORY = 0.25  # that the linearised matrix may keep


class Matrices(NamedTuple):
    """What a report looks at."""

    A: CurvatureLinearOperator  # the matrix, looked at: its data was passed over twice
    # makes the GGN, for numbers that need a psd matrix; None if A is one, or the loss
    # is not convex in the prediction
    gauss_newton: Callable[[], CurvatureLinearOperator] | None


def matrices(problem: Problem, settings: Settings, notes: list[str]) -> Matrices:
    """Operators over the problem, as the settings say; notes tell of half precision."""
    dtype = settings.dtype
    is_half = any(p.is_floating_point() and p.dtype.itemsize < 4 for p in problem.tensors)
    if dtype is None and is_half and isinstance(problem.model, nn.Module):
        dtype = torch.float32
        notes.append(
            "The parameters are in half precision; the report is of the same model in "
            "float32."
        )
    operator = converted(problem, dtype, settings.device).operator
    A = operator(MATRICES[settings.curvature])
    has_other = not A.psd and A.risk.loss.convex
    other = partial(operator, "GGN", check_deterministic=False)
    return Matrices(A, other if has_other else None)


def linearized(op: CurvatureLinearOperator, end: float) -> LinearOperator:
    """The same matrix, for hundreds of products; as it is if they do not come to that."""
    begin = time.monotonic()
    op @ torch.ones(op.shape[1], dtype=op.dtype, device=op.device)
    seconds = time.monotonic() - begin
    expected = min(EXPECTED_PRODUCTS, (end - time.monotonic()) / max(seconds, 1e-9))
    if expected < FEW_PRODUCTS or end - time.monotonic() < SHORT:
        return op
    budget = int(SHARE_OF_MEMORY * free_memory(op.device))
    with warnings.catch_warnings():
        # a matter of speed, which the reader of a report cannot mend
        warnings.filterwarnings("ignore", "The product cannot be recorded")
        try:
            return op.linearize(budget, num_products=int(expected))
        except RuntimeError:  # what cannot be kept is computed
            return op


# ---------------------------------------------- another precision or device


class Cast:
    """Data whose floating-point tensors are of one type."""

    def __init__(self, source: Any, dtype: torch.dtype) -> None:
        self._source = source
        self._dtype = dtype

    def __iter__(self) -> Iterator[Any]:
        for batch in self._source:
            yield nested.map_tensors(self._cast, batch)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)  # a loader's generators

    def _cast(self, t: Tensor) -> Tensor:
        return t.to(self._dtype) if t.is_floating_point() else t


def converted(
    problem: Problem, dtype: torch.dtype | None, device: torch.device | None
) -> Problem:
    """A copy of the problem with other tensors; the problem itself where nothing changes.

    Raises:
        ValueError: If the model is a callable, whose tensors cannot be reached.
    """
    same_dtype = dtype is None or all(p.dtype == dtype for p in problem.tensors)
    same_device = device is None or all(p.device == device for p in problem.tensors)
    if same_dtype and same_device:
        return problem
    if not isinstance(problem.model, nn.Module):
        raise ValueError(
            "dtype and device need a module as model, whose tensors can be converted, got "
            f"a {type(problem.model).__name__}. Convert it in your function."
        )
    read = tensors_in(problem.loss) if callable(problem.loss) else {}
    if any(id(p) in read for p in problem.tensors):
        raise ValueError(
            "dtype and device make a copy of the module, and the loss refers to parameters "
            "of the original. Convert both in your function."
        )
    model = copy.deepcopy(problem.model).to(device=device, dtype=dtype)
    loss = problem.loss
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).to(device=device, dtype=dtype)
    name_of = {id(p): name for name, p in problem.model.named_parameters()}
    new = dict(model.named_parameters())
    params: list[Tensor] | dict[str, Tensor]
    try:
        if isinstance(problem.params, dict):
            params = {key: new[name_of[id(p)]] for key, p in problem.params.items()}
        else:
            params = [new[name_of[id(p)]] for p in problem.params]
    except KeyError:
        raise ValueError(
            "dtype and device need the module's own parameters, for instance "
            "model.parameters(), not copies."
        ) from None
    data = problem.data if dtype is None else Cast(problem.data, dtype)
    return replace(problem, model=model, loss=loss, params=params, data=data)
