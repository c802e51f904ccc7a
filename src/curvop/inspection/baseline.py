"""Baselines for products: the true product, and time and memory of a gradient."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from curvop.autograd import gradient
from curvop.curvature import CurvatureLinearOperator, Truth, is_gradient, truth
from curvop.derivatives import Way as AsWay
from curvop.inspection.measuring import peak_bytes_of, seconds_of
from curvop.inspection.observation import Observation
from curvop.inspection.problem import MATRICES, Matrix
from curvop.inspection.wording import explained
from curvop.operators import Blocks, probe, tolerance
from curvop.risk import Batch, Parameters


@dataclass(frozen=True)
class Reference:
    """What a matrix was compared with.

    Attributes:
        matrix: The matrix.
        method: Finite differences of first derivatives; ``None`` if there is no
            reference.
        dtype: The precision that it was computed in, ``"float64"`` where possible.
        doubt: Why there is none.
        error: Its estimated relative error.
    """

    matrix: Matrix
    method: Literal["finite differences"] | None
    dtype: str | None
    doubt: str | None = None
    error: float | None = None


@dataclass(frozen=True)
class Baseline:
    """What the trials of one matrix are held against."""

    matrix: Matrix
    reference: Reference  # how the true product was found
    truth: Truth | None  # the true product with v
    v: Tensor  # a vector, in the precision of the parameters
    u: Tensor  # another one
    batch: Batch  # the sample
    # differentiation -> operator on the sample
    build: Callable[[AsWay], CurvatureLinearOperator]
    gradient_seconds: float | None  # what a gradient of the sample takes
    gradient_bytes: int | None  # most bytes of tensors alive at once that it makes
    is_gradient: bool | None  # of the loss, not of something else; None if unclear
    rounding: float  # relative, of the precision of the parameters
    is_random: bool  # loss or gradient differ from one evaluation to the next

    def exact(self, way: AsWay) -> CurvatureLinearOperator:
        """The operator in double precision.

        Raises:
            MemoryError: If there is too little memory.
            RuntimeError: If a copy of the model predicts something else.
        """
        op = self.build(way)
        made, X, y = op.in_double(*self.batch)
        return made.with_risk(
            replace(made.risk, data=replace(op.risk.data, source=[(X, y)]))
        )


def baselines(seen: Observation) -> tuple[Baseline, ...]:
    """Those of all matrices that the loss has."""
    given, batch = seen.given, seen.sample.batch
    v, u = probes(given.parameters)
    rounding = tolerance(*(p.dtype for p in given.parameters.tensors))
    seconds, nbytes = _gradient_costs(seen)
    found = []
    for matrix in MATRICES:
        if matrix == "EF" and given.loss.terms is None:
            continue
        build = functools.partial(given.on_batch, matrix, batch)
        known, how = _reference(matrix, build, seen, v)
        found.append(
            Baseline(
                matrix=matrix,
                reference=how,
                truth=known,
                v=v,
                u=u,
                batch=batch,
                build=build,
                gradient_seconds=seconds,
                gradient_bytes=nbytes,
                is_gradient=None,
                rounding=rounding,
                is_random=seen.is_random,
            )
        )
    known = next((base.truth for base in found if base.truth is not None), None)
    is_right = None if known is None else is_gradient(known.subject)
    return tuple(replace(base, is_gradient=is_right) for base in found)


def probes(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Two fixed vectors, in the precision of the parameters."""
    tensors = parameters.tensors
    drawn = probe([p.detach().expand(2, *p.shape) for p in tensors])
    rounded = [
        b.to(p.dtype).to(parameters.dtype) for b, p in zip(drawn, tensors, strict=True)
    ]
    v, u = torch.cat([b.reshape(2, -1) for b in rounded], 1)
    return v, u


def blocks(op: CurvatureLinearOperator, v: Tensor) -> Blocks:
    """A flat vector as blocks ``[1, *n_i]``."""
    parts = v.split([shape.numel() for shape in op.domain])
    return [w.reshape(1, *shape) for w, shape in zip(parts, op.domain, strict=True)]


def reference(
    matrix: Matrix, op: CurvatureLinearOperator, batch: Batch, v: Blocks
) -> tuple[Truth | None, Reference]:
    """The product of the matrix of one batch, by differences of first derivatives.

    Args:
        matrix: Its name.
        op: The operator, in any way to differentiate.
        batch: The batch.
        v: What to multiply, ``[1, *n_i]``.
    """
    try:
        with op.risk.context():
            found = truth(op.subject(*batch), v)
            Z = op.risk.divisor_over([batch])
    except Exception as error:
        found = explained(error)
    if isinstance(found, str):
        return None, Reference(matrix, None, None, found)
    precision = str(found.subject.dtype)[6:]
    product = [b / Z.to(b) for b in found.product]
    return (
        replace(found, product=product, order=found.order / float(Z)),
        Reference(matrix, "finite differences", precision, None, found.error),
    )


def _gradient_costs(seen: Observation) -> tuple[float | None, int | None]:
    """Seconds and bytes of a gradient, where there is one: the units."""
    if seen.error is not None:
        return None, None
    parameters, (X, y) = seen.given.parameters, seen.sample.batch

    def run() -> object:
        with torch.enable_grad(), parameters.leaves() as params:
            total = seen.given.loss.total(parameters.model(params, X), y)
            return gradient(total, params, create_graph=False)

    seconds, nbytes = None, None
    with contextlib.suppress(Exception):  # a model may fail now and then
        seconds = seconds_of(run, parameters.device)
        nbytes = peak_bytes_of(run)
    return seconds, nbytes


def _reference(
    matrix: Matrix,
    build: Callable[[AsWay], CurvatureLinearOperator],
    seen: Observation,
    v: Tensor,
) -> tuple[Truth | None, Reference]:
    """The true product, and how good it is; or why there is none."""
    why = "the model is random" if seen.is_random else seen.error
    if why is not None:
        return None, Reference(matrix, None, None, why)
    try:
        op = build("auto")
    except Exception as error:
        return None, Reference(matrix, None, None, explained(error))
    return reference(matrix, op, seen.sample.batch, blocks(op, v))
