"""What the trials of a matrix share: the operator, the reference and the units."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.differentiation import Way as AsWay
from curvop.curvature.parameters import Parameters
from curvop.curvature.probing import probe
from curvop.curvature.replica import Replica, replica
from curvop.inspection.measuring import peak_bytes_of, seconds_of
from curvop.inspection.observation import Observation, take_gradient
from curvop.inspection.problem import Problem
from curvop.inspection.reference import Truth
from curvop.inspection.results import MATRICES, Matrix, Reference, first_line
from curvop.inspection.sample import Sample


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
        accuracy: Relative error that the reference itself may have.
        scale: What a product with ``v`` is of the order of.
        exact: ``differentiation -> operator`` in double precision, where there is a copy.
        is_random: Whether loss or gradient differ from one evaluation to the next.
    """

    matrix: Matrix
    reference: Reference
    v: Tensor
    u: Tensor
    build: Callable[[AsWay], CurvatureLinearOperator]
    gradient_seconds: float | None
    gradient_bytes: int | None
    truth: Tensor | None
    accuracy: float
    scale: float
    exact: Callable[[AsWay], CurvatureLinearOperator] | None
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
    tensors = op._parameters.tensors
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
    copy, truth, no_truth = _truth(problem, sample, seen)
    v, u = probes(problem.parameters)

    def bench(matrix: Matrix) -> Bench:
        value, scale, reference = None, 0.0, Reference(matrix, None, None, no_truth)
        if truth is not None:
            value, scale, reference = _reference(truth, matrix, v)
        return Bench(
            matrix,
            reference,
            v,
            u,
            functools.partial(_on_sample, problem, matrix, sample),
            seconds,
            nbytes,
            value,
            0.0 if truth is None else truth.accuracy(reference),
            scale,
            None if copy is None else functools.partial(problem.exact, matrix, copy),
            seen.is_random,
        )

    has_terms = problem.loss.terms is not None
    return Benches(
        tuple(bench(m) for m in MATRICES if m != "EF" or has_terms),
        seconds,
        nbytes,
        None if truth is None else truth.gradient_is_right,
    )


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


def _truth(
    problem: Problem, sample: Sample, seen: Observation
) -> tuple[Replica | None, Truth | None, str]:
    """A copy in double precision and products with it; or why there are none."""
    if seen.error is not None:
        return None, None, seen.error
    if seen.is_random:
        return None, None, "the model is random"
    reason = ""
    for dtype in (torch.float64, torch.float32):
        try:
            copy = replica(
                problem.model,
                problem.loss_func,
                problem.params,
                problem.parameters,
                sample.batch,
                dtype,
            )
            truth = Truth(copy)
            return copy if dtype is torch.float64 else None, truth, ""
        except Exception as error:
            reason = reason or f"no copy in double precision: {first_line(error)}"
    return None, None, reason


def _reference(
    truth: Truth, matrix: Matrix, v: Tensor
) -> tuple[Tensor | None, float, Reference]:
    """The true product, what it is of the order of, and how it was found."""
    try:
        v = v.to(truth.dtype)
        value, reference = truth.product(matrix, v)
        return value, truth.scale(v), reference
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        return None, 0.0, Reference(matrix, None, None, reason)


def _on_sample(problem: Problem, matrix: Matrix, sample: Sample, way: Any) -> Any:
    return problem.operator(
        matrix, [sample.batch], check_deterministic=False, differentiation=way
    )
