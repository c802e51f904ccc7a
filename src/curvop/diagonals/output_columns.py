"""What is pulled back through the network: columns for each datum, with signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop.curvature import (
    CurvatureLinearOperator,
    EFLinearOperator,
    GGNLinearOperator,
    OutputFactor,
)
from curvop.derivatives import Aux, DoubleBackward, Outputs, sized
from curvop.risk import Parameters, nested


@dataclass(frozen=True)
class OutputColumns:
    """``Σ_r σ_{n,r} s_{n,r} s_{n,r}ᵀ`` is the matrix in the middle for each datum ``n``.

    Attributes:
        N: Number of data.
        count: Columns of each datum.
        factor: Where they come from; or
        eigen: they and their signs, ``[R, N, m]`` and ``[R, N]``.
    """

    N: int
    count: int
    factor: OutputFactor | None
    eigen: tuple[Tensor, Tensor] | None = None

    def __call__(self, which: slice) -> tuple[Tensor, Tensor | None]:
        """Some columns of each datum at once, ``[k, N, m]``, and their signs ``[k, N]``."""
        if self.eigen is not None:
            S, signs = self.eigen
            return S[which], signs[which]
        assert self.factor is not None
        blocks = self.factor.blocks(which)
        return torch.cat([b.reshape(len(b), self.N, -1) for b in blocks], 2), None


def output_columns(
    A: CurvatureLinearOperator, prediction: Any, X: Any, y: Any
) -> OutputColumns:
    """The columns of a GGN or empirical Fisher for one batch."""
    assert isinstance(A, GGNLinearOperator | EFLinearOperator)
    N = A.risk.data.batch_size(X, y)
    prediction = nested.map_tensors(Tensor.detach, prediction)
    try:
        factor = A.output_factor(prediction, X, y, fewest=True)
    except ValueError:
        if A.psd:
            raise
        S, signs = _eigenvectors(A, prediction, y, N)
        return OutputColumns(N, len(S), None, (S, signs))
    return OutputColumns(N, factor.num_columns, factor)


def _eigenvectors(
    A: CurvatureLinearOperator, prediction: Any, y: Any, N: int
) -> tuple[Tensor, Tensor]:
    """For a loss that is not convex: ``√|λ| q`` and the sign of ``λ``."""
    outputs = nested.differentiable(prediction)
    sizes = [o.numel() // N for o in outputs]
    m = sum(sizes)

    def total(outputs: Sequence[Tensor]) -> tuple[Outputs, Aux]:
        return (A.risk.loss.total(nested.refill(prediction, outputs), y),), ()

    eye = torch.eye(m, dtype=outputs[0].dtype, device=outputs[0].device)
    units = eye[:, None].expand(m, N, m).split(sizes, 2)
    U = [u.reshape(m, *o.shape) for u, o in zip(units, outputs, strict=True)]
    at = Parameters(outputs, None, lambda p, X: p, functional=True)
    rows, _ = DoubleBackward().hessian(total, at, U, None)
    H = torch.cat([r.reshape(m, N, -1) for r in rows], 2).movedim(1, 0)  # [N, m, m]
    values, Q = torch.linalg.eigh((H + H.mT) / 2)
    S = Q * values.abs().sqrt()[:, None]
    return S.movedim(2, 0), values.sign().T


def columns_at_once(A: CurvatureLinearOperator, X: Any, count: int) -> int:
    """As many as a product of the matrix takes at once."""
    inputs = sum(t.numel() for t in nested.tensors(X))
    return max(1, min(count, sized(A.chunk_size, max(A.shape[0], inputs)) or count))


def squares(g: Tensor, signs: Tensor | None) -> Tensor:
    """``Σ σ g²`` over the leading axis of ``g``, ``[n, *p]``; in single at least."""
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    flat = g.reshape(len(g), -1)
    if signs is None:
        return flat.square().sum(0).view(g.shape[1:])
    return (signs.to(g.dtype) @ flat.square()).view(g.shape[1:])
