"""What products are held against: the true one, and the time and memory of a gradient."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.differentiation import Way as AsWay
from curvop.curvature.merging import Batch
from curvop.curvature.parameters import Parameters
from curvop.curvature.probing import probe
from curvop.curvature.proof import Truth, is_gradient, subject, truth
from curvop.curvature.replica import doubled
from curvop.curvature.surroundings import surroundings
from curvop.inspection.measuring import peak_bytes_of, seconds_of
from curvop.inspection.observation import Observation, take_gradient
from curvop.inspection.problem import MATRICES, Matrix, Understood
from curvop.inspection.sample import Sample
from curvop.inspection.wording import explained
from curvop.operators.layout import Blocks


@dataclass(frozen=True)
class Reference:
    """What a matrix was compared with.

    Attributes:
        matrix: The matrix.
        method: Finite differences of first derivatives; ``None`` if there is no
            reference.
        dtype: The precision that it was computed in, ``"float64"`` where possible.
        doubt: Why there is none.
        error: Its relative error, as estimated by itself.
    """

    matrix: Matrix
    method: Literal["finite differences"] | None
    dtype: str | None
    doubt: str | None = None
    error: float | None = None


@dataclass(frozen=True)
class Baseline:
    """What the trials of one matrix are held against.

    Attributes:
        matrix: The matrix.
        reference: How the true product was found.
        truth: The true product with ``v``, or ``None``.
        v: A vector, in the precision of the parameters.
        u: Another one.
        batch: The sample.
        build: ``differentiation -> operator`` on the sample.
        gradient_seconds: What a gradient of the sample takes.
        gradient_bytes: Most bytes of tensors alive at once that it makes.
        is_gradient: Whether the gradient is that of the loss; ``None`` if that is not
            clear.
        is_random: Whether loss or gradient differ from one evaluation to the next.
    """

    matrix: Matrix
    reference: Reference
    truth: Truth | None
    v: Tensor
    u: Tensor
    batch: Batch
    build: Callable[[AsWay], CurvatureLinearOperator]
    gradient_seconds: float | None
    gradient_bytes: int | None
    is_gradient: bool | None
    is_random: bool

    def exact(self, way: AsWay) -> CurvatureLinearOperator:
        """The operator in double precision.

        Raises:
            MemoryError: If there is too little memory.
            RuntimeError: If a copy of the model predicts something else.
        """
        op = self.build(way)
        made, X, y = doubled(op, *self.batch)
        return made._with(_data=replace(op._data, source=[(X, y)]))


def baselines(given: Understood, sample: Sample, seen: Observation) -> tuple[Baseline, ...]:
    """Those of all matrices that the loss has.

    Args:
        given: Model, loss and parameters.
        sample: The data.
        seen: What was seen of the model on them.
    """
    has_terms = given.loss.terms is not None
    matrices = [m for m in MATRICES if m != "EF" or has_terms]
    seconds, nbytes = _gradient_costs(given, sample, seen)
    v, u = probes(given.parameters)
    build = {m: functools.partial(_on_sample, given, m, sample) for m in matrices}
    found = {m: _reference(m, build[m], sample.batch, seen, v) for m in matrices}
    known = [truth for truth, _ in found.values() if truth is not None]
    is_right = is_gradient(known[0].subject) if known else None
    return tuple(
        Baseline(
            matrix=m,
            reference=found[m][1],
            truth=found[m][0],
            v=v,
            u=u,
            batch=sample.batch,
            build=build[m],
            gradient_seconds=seconds,
            gradient_bytes=nbytes,
            is_gradient=is_right,
            is_random=seen.is_random,
        )
        for m in matrices
    )


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
        with surroundings(op._data):
            found = truth(subject(op, *batch), v)
            Z = divisor(op, [batch])
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


def divisor(op: CurvatureLinearOperator, batches: Sequence[Batch]) -> Tensor:
    """What the mean over these batches divides by."""

    def tally(batch: Batch) -> tuple[Tensor, Tensor]:
        X, y = batch
        with torch.no_grad():
            params = [p.detach() for p in op._parameters.tensors]
            loss, share = op._tally(op._predict(params, X), y)
        return loss, share

    loss, share = zip(*map(tally, batches), strict=True)
    return op._divisor(torch.stack(loss).sum(), torch.stack(share).sum())


def _gradient_costs(
    given: Understood, sample: Sample, seen: Observation
) -> tuple[float | None, int | None]:
    """Seconds and bytes of a gradient, where there is one."""
    if seen.error is not None:
        return None, None
    run = take_gradient(given.parameters, given.loss, *sample.batch)
    seconds, nbytes = None, None
    with contextlib.suppress(Exception):  # a model may fail now and then
        seconds = seconds_of(run, given.parameters.device)
        nbytes = peak_bytes_of(run)
    return seconds, nbytes


def _reference(
    matrix: Matrix,
    build: Callable[[AsWay], CurvatureLinearOperator],
    batch: Batch,
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
    return reference(matrix, op, batch, blocks(op, v))


def _on_sample(
    given: Understood, matrix: Matrix, sample: Sample, way: AsWay
) -> CurvatureLinearOperator:
    return given.operator(
        matrix, [sample.batch], check_deterministic=False, differentiation=way
    )
