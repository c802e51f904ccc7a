"""What the trials of a matrix share: the operator, the reference and the units."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvop.curvature import CurvatureLinearOperator, Truth, is_gradient
from curvop.derivatives import Way as AsWay
from curvop.inspection.measuring import peak_bytes_of, seconds_of
from curvop.inspection.observation import Observation, take_gradient
from curvop.inspection.problem import Problem
from curvop.inspection.reference import exact, reference
from curvop.inspection.results import MATRICES, Matrix, Reference, first_line
from curvop.inspection.sample import Sample
from curvop.operators import probe
from curvop.risk import Parameters


@dataclass(frozen=True)
class Bench:
    """What the trials of one matrix share.

    Attributes:
        matrix: The matrix.
        reference: How the reference was found.
        v: A vector, in the precision of the parameters.
        u: Another one.
        build: ``differentiation -> operator`` on the sample.
        gradient_seconds: What a gradient of the sample takes.
        gradient_bytes: Most bytes of tensors alive at once that it makes.
        truth: The reference product with ``v``, or ``None``.
        is_gradient: Whether the gradient is that of the loss; ``None`` if that is not
            clear.
        exact: ``differentiation -> operator`` in double precision.
        is_random: Whether loss or gradient differ from one evaluation to the next.
    """

    matrix: Matrix
    reference: Reference
    v: Tensor
    u: Tensor
    build: Callable[[AsWay], CurvatureLinearOperator]
    gradient_seconds: float | None
    gradient_bytes: int | None
    truth: Truth | None
    is_gradient: bool | None
    exact: Callable[[AsWay], CurvatureLinearOperator]
    is_random: bool


def probes(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Two fixed vectors, in the precision of the parameters."""
    tensors = parameters.tensors
    drawn = probe([p.detach().expand(2, *p.shape) for p in tensors])
    rounded = [
        b.to(p.dtype).to(parameters.dtype) for b, p in zip(drawn, tensors, strict=True)
    ]
    v, u = torch.cat([b.reshape(2, -1) for b in rounded], 1)
    return v, u


def blocks(op: CurvatureLinearOperator, v: Tensor) -> list[Tensor]:
    """A flat vector as blocks ``[1, *n_i]``."""
    tensors = op.risk.parameters.tensors
    parts = v.split([p.numel() for p in tensors])
    return [w.reshape(1, *p.shape) for w, p in zip(parts, tensors, strict=True)]


@dataclass(frozen=True)
class Benches:
    """Those of all matrices that the loss has.

    Attributes:
        each: One for each matrix.
        gradient_seconds: What a gradient of the sample takes.
        gradient_bytes: Most bytes of tensors alive at once that it makes.
        is_gradient_right: Whether it is that of the loss; ``None`` if that is not clear.
    """

    each: tuple[Bench, ...]
    gradient_seconds: float | None
    gradient_bytes: int | None
    is_gradient_right: bool | None


def benches(problem: Problem, sample: Sample, seen: Observation) -> Benches:
    """Compute the references and the units.

    Args:
        problem: Model, loss and parameters.
        sample: The data.
        seen: What was seen of the model on them.
    """
    seconds, nbytes = _gradient_costs(problem, sample, seen)
    has_terms = problem.loss.terms is not None
    matrices = [m for m in MATRICES if m != "EF" or has_terms]
    v, u = probes(problem.parameters)
    found = {m: _reference(problem, m, sample, seen, v) for m in matrices}
    known = [truth for truth, _ in found.values() if truth is not None]
    is_right = is_gradient(known[0].subject) if known else None

    def bench(matrix: Matrix) -> Bench:
        truth, reference = found[matrix]
        build = functools.partial(_on_sample, problem, matrix, sample)
        return Bench(
            matrix,
            reference,
            v,
            u,
            build,
            seconds,
            nbytes,
            truth,
            is_right,
            lambda way: exact(build(way), sample.batch),
            seen.is_random,
        )

    return Benches(tuple(bench(m) for m in matrices), seconds, nbytes, is_right)


def _gradient_costs(
    problem: Problem, sample: Sample, seen: Observation
) -> tuple[float | None, int | None]:
    """Seconds and bytes of a gradient, where there is one."""
    if seen.error is not None:
        return None, None
    run = take_gradient(problem.parameters, problem.loss, *sample.batch)
    seconds, nbytes = None, None
    with contextlib.suppress(Exception):  # a model may fail now and then
        seconds = seconds_of(run, problem.parameters.device)
        nbytes = peak_bytes_of(run)
    return seconds, nbytes


def _reference(
    problem: Problem, matrix: Matrix, sample: Sample, seen: Observation, v: Tensor
) -> tuple[Truth | None, Reference]:
    """The true product, and how good it is; or why there is none."""
    why = "the model is random" if seen.is_random else seen.error
    if why is not None:
        return None, Reference(matrix, None, None, why)
    try:
        op = _on_sample(problem, matrix, sample, "auto")
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        return None, Reference(matrix, None, None, why)
    return reference(matrix, op, sample.batch, blocks(op, v))


def _on_sample(
    problem: Problem, matrix: Matrix, sample: Sample, way: AsWay
) -> CurvatureLinearOperator:
    return problem.operator(
        matrix, [sample.batch], check_deterministic=False, differentiation=way
    )
