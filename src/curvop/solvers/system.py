"""A linear system: right-hand sides as checked and scaled rows, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from curvop import scaling
from curvop.operators import (
    Blocks,
    Form,
    LinearOperator,
    Space,
    Vector,
    admit,
    as_operator,
    read,
)
from curvop.scaling import unit


@dataclass(frozen=True)
class System:
    """Right-hand sides of ``A Xᵀ = Bᵀ`` as rows of ``B``, and the start ``X``.

    Rows, because their entries are then contiguous. They are scaled by powers of two to
    order one, so that squared norms of tiny gradients do not underflow.
    """

    B: Tensor  # [K, M]
    X: Tensor  # [K, N]
    scale: Tensor  # [K]
    form: Form
    space: Space  # of the solution
    dtype: torch.dtype  # of the solution

    @property
    def num_columns(self) -> int:
        """``K``."""
        return len(self.B)

    def tolerances(self, reference: Tensor, rtol: float, atol: float) -> list[float]:
        """For each column ``max(rtol · reference, atol)``, in scaled units."""
        least = atol / self.scale.cpu().double()
        most: list[float] = torch.maximum(rtol * reference.cpu().double(), least).tolist()
        return most

    def write(self, X: Tensor) -> Vector:
        """Rows over the domain, in the form of the right-hand side."""
        return self.form.write(blocks_of(X.to(self.dtype), self.space), self.space)

    def rescaled(self, X: Tensor) -> Tensor:
        """Rows in the units of the right-hand side."""
        return X * self.scale[:, None]


def read_system(A: LinearOperator, b: Vector, x0: Vector | None = None) -> System:
    """Check ``b`` and ``x0`` against ``A`` and turn them into rows.

    Raises:
        TypeError: If they are of the wrong kind or dtype.
        ValueError: If a shape does not fit, or an entry is not finite.
    """
    B, form = _read_rows(A, b, A.output_space, "right-hand side b")
    if x0 is None:
        X = B.new_zeros(len(B), A.shape[1])
    else:
        X, given = _read_rows(A, x0, A.input_space, "initial guess x0")
        if (len(X), given.is_vector) != (len(B), form.is_vector):
            want, got = (
                "a vector" if f.is_vector else f"{n} columns"
                for f, n in ((form, len(B)), (given, len(X)))
            )
            raise ValueError(f"Expected x0 as {want}, as b is, got {got}.")
    peak = B.abs().amax(1) if B.shape[1] else B.new_zeros(len(B))
    scale = torch.where(peak == 0, 1.0, unit(B, 1)[:, 0])
    # for b = 0 the solution is zero, from every start
    X = torch.where(peak[:, None] == 0, 0.0, X / scale[:, None])
    return System(B / scale[:, None], X, scale, form, A.input_space, A.dtype)


def _read_rows(
    A: LinearOperator, x: Vector, space: Space, name: str
) -> tuple[Tensor, Form]:
    blocks, form = read(x, space)
    blocks = [admit(b, A.dtype, A.device).detach() for b in blocks]
    if any(b.is_complex() for b in blocks):
        raise TypeError(
            f"Expected a real {name}, got {blocks[0].dtype}. Solve for its real and "
            "imaginary part as two columns."
        )
    rows = rows_of(blocks)
    if not bool(rows.isfinite().all()):
        where = (~rows.isfinite().all(1)).nonzero()[:, 0].tolist()
        which = "" if form.is_vector else f" in columns {where}"
        raise ValueError(f"Expected a finite {name}, got inf or nan{which}.")
    # half precision has too few digits for recurrences; only products are in it
    return rows.to(torch.float32) if rows.dtype.itemsize < 4 else rows, form


def rows_of(blocks: Blocks) -> Tensor:
    """Blocks ``[*n_i, K]`` as rows ``[K, N]``, always a copy."""
    K = blocks[0].shape[-1]
    sizes = [math.prod(b.shape[:-1]) for b in blocks]
    parts = [b.movedim(-1, 0).reshape(K, n) for b, n in zip(blocks, sizes, strict=True)]
    return torch.cat(parts, 1)


def blocks_of(X: Tensor, space: Space) -> Blocks:
    """Rows ``[K, N]`` as blocks ``[*n_i, K]``."""
    parts = zip(X.split(space.sizes, 1), space.shapes, strict=True)
    return [b.reshape(len(X), *shape).movedim(0, -1) for b, shape in parts]


# ------------------------------------------------------------------- linear algebra


def times(A: LinearOperator, V: Tensor) -> Tensor:
    """``A`` multiplied onto each row: ``[K, N] -> [K, M]``, one product for all."""
    AV: Tensor = (A @ V.T.to(A.dtype)).T
    return AV.to(V.dtype).contiguous()


def dots(V: Tensor, W: Tensor) -> Tensor:
    """Inner products of the rows: ``[K]``; summed pairwise, without TF32.

    In double precision, where ``vᵀ w`` does not over- or underflow.
    """
    size = unit(V, 1)
    return (V / size * W).sum(1).double() * size[:, 0]


def norms(V: Tensor) -> Tensor:
    """Norms of the rows: ``[K]``."""
    return scaling.norms(V, 1)


def divided(V: Tensor, by: Tensor) -> Tensor:
    """``V / by``, and zero where ``by`` is zero."""
    by = by if by.ndim == V.ndim else by[:, None]
    return torch.where(by == 0, 0.0, V / by)


# ----------------------------------------------------------------------- the door

UNSYMMETRIC = (
    "Expected a symmetric matrix and preconditioner, but residuals that must be orthogonal "
    "are not: A or M is tagged symmetric and is not. For a matrix that is not symmetric "
    "there is lsmr."
)
NOT_FINITE = (
    "Expected finite products, got inf or nan in iteration {}. Look at what A (or a "
    "preconditioner) returns; a checkpoint holds only iterations before this one."
)
INDEFINITE = (
    "Expected a positive definite preconditioner M, got one for which rᵀ M r is not "
    "positive for a residual r."
)


def tagged(A: Any, solver: str, tag: str) -> LinearOperator:
    """``A`` as an operator with the tag that a solver needs.

    Raises:
        ValueError: If it does not have the tag.
    """
    op = as_operator(A)
    if op.shape[0] != op.shape[1]:
        raise ValueError(
            f"{solver} needs a square matrix, got {op.shape}. For a rectangular one there "
            "is lsmr."
        )
    if not getattr(op, tag):
        kind = "positive semi-definite" if tag == "psd" else "symmetric"
        raise ValueError(
            f"{solver} needs a {kind} operator, and {op!r} is not tagged as one. If you "
            f"know that it is, say assume_{tag}(A)."
        )
    return op


def preconditioner(M: Any, A: LinearOperator) -> LinearOperator | None:
    """``M`` as a positive semi-definite operator that fits ``A``.

    Raises:
        TypeError: If its dtype differs, or it is not a matrix.
        ValueError: If its shape or device differs, or it is not tagged.
    """
    if M is None:
        return None
    op = tagged(M, "The preconditioner M=", "psd")
    if op.shape != A.shape:
        raise ValueError(f"Expected a preconditioner of shape {A.shape}, got {op.shape}.")
    if op.dtype != A.dtype:
        raise TypeError(f"Expected a preconditioner of {A.dtype}, got {op.dtype}.")
    if op.device != A.device:
        raise ValueError(f"Expected a preconditioner on {A.device}, got {op.device}.")
    return op


def check_number(name: str, value: Any, *, least: float = 0.0) -> float:
    """A finite number of at least ``least``.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is smaller, or not finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"Expected {name} as a real number, got {type(value).__name__}.")
    if not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"Expected {name} as a finite number{bound}, got {value}.")
    return float(value)
