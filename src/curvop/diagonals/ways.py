"""Ways to compute a diagonal: the first that gives right entries is taken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from curvop.curvature import CurvatureLinearOperator, GGNLinearOperator
from curvop.derivatives import Aux
from curvop.diagonals.output_columns import columns_at_once
from curvop.linearized import leads
from curvop.operators import Blocks
from curvop.risk import (
    all_reduce,
    failing_together,
    nested,
    refuse_reading,
)

# The entries that are checked, of so many data at least.
ENTRIES = 8
FEW_DATA = 3


class Way(Protocol):
    """A way to compute the diagonal of one batch."""

    @property
    def form(self) -> str:
        """What to call it."""

    def for_model(self, A: CurvatureLinearOperator, X: Any, y: Any) -> Way:
        """This way, once a few data have been looked at."""

    def __call__(self, A: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Blocks, Aux]:
        """The diagonal for one batch's *summed* loss, and what the batch adds to ``Z``."""


class WrongDiagonalError(Exception):
    """A way does not give the diagonal of this model."""


class UnitVectors:
    """``e_iᵀ A e_i`` for every ``i``: right for every model, the last resort."""

    form = "columns"

    def for_model(self, A: CurvatureLinearOperator, X: Any, y: Any) -> UnitVectors:
        """Any model."""
        return self

    def __call__(self, A: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Blocks, Aux]:
        """As many products as parameters."""
        tensors, P = A.risk.parameters.tensors, A.shape[0]
        parts: list[Tensor] = []
        tally: Aux = ()
        for i in torch.arange(P, device=A.device).split(columns_at_once(A, X, P)):
            rows = torch.arange(len(i), device=i.device)
            E = torch.zeros(len(i), P, dtype=A.dtype, device=A.device)
            E[rows, i] = 1
            units = E.split([p.numel() for p in tensors], 1)
            V = [e.reshape(len(e), *p.shape) for e, p in zip(units, tensors, strict=True)]
            A, (product, tally) = A.batch_product(X, y, V)
            parts.append(torch.cat([b.reshape(len(i), -1) for b in product], 1)[rows, i])
        diagonals = torch.cat(parts).split([p.numel() for p in tensors])
        return [d.reshape(p.shape) for d, p in zip(diagonals, tensors, strict=True)], tally


def exact_diagonal(A: CurvatureLinearOperator, ways: Sequence[Way]) -> tuple[Blocks, str]:
    """The diagonal over all batches and ranks, and how it was computed."""
    wide = torch.promote_types(A.dtype, torch.float32)  # sums of half precision
    way: Way | None = None
    A = A.with_kernels_of_its_way()
    with A.risk.context():
        sums = [torch.zeros_like(p.detach(), dtype=wide) for p in A.risk.parameters.tensors]
        loss = torch.zeros((), dtype=wide, device=A.device)
        share = torch.zeros((), dtype=torch.float64, device=A.device)
        size = sum(total.numel() for total in sums) + 2
        with failing_together(size, A.risk.process_group, A.dtype, A.device):
            for X, y in A.risk.data.batches("diagonal"):
                if way is None:
                    if isinstance(A, GGNLinearOperator):
                        refuse_reading(A.risk, X, y)
                    way = first_right(A, ways, X, y)
                parts, (batch_loss, batch_share) = way(A, X, y)
                for total, part in zip(sums, parts, strict=True):
                    total += part
                loss += batch_loss
                share += batch_share
        *sums, loss, share = all_reduce([*sums, loss, share], A.risk.process_group)
        Z = A.risk.divisor(loss, share)
        if not any(bool(d.any()) for d in sums):
            A.risk.check_dependence()
        form = ways[-1].form if way is None else way.form
        return [d.div_(Z).to(A.dtype) for d in sums], form


def first_right(A: CurvatureLinearOperator, ways: Sequence[Way], X: Any, y: Any) -> Way:
    """The first way whose entries are those of the matrix, for some data of a batch."""
    # as many as no other axis is long, which could be taken for the data's
    sizes = {size for t in nested.tensors((X, y)) for size in t.shape}
    count = next(n for n in itertools.count(FEW_DATA) if n not in sizes)
    few = cut(A, X, y, slice(count)) or (X, y)
    for way in ways[:-1]:
        try:
            way = way.for_model(A, *few)
            _check_entries(A, way, *few)
            return way
        except Exception:  # a matter of speed only
            continue
    return ways[-1]


def cut(A: CurvatureLinearOperator, X: Any, y: Any, data: slice) -> tuple[Any, Any] | None:
    """Some of the data of a batch; ``None`` where no input has the data leading."""
    try:
        N = A.risk.data.batch_size(X, y)
    except ValueError:
        return None
    if not any(leads(t, N) for t in nested.tensors(X)):
        return None
    X, y = nested.map_tensors(lambda t: t[data] if leads(t, N) else t, (X, y))
    return X, y


def _check_entries(A: CurvatureLinearOperator, way: Way, X: Any, y: Any) -> None:
    """Compare the largest entries of some blocks with products of the matrix.

    Raises:
        WrongDiagonalError: If one differs.
    """
    blocks, _ = way(A, X, y)
    filled = [i for i, b in enumerate(blocks) if b.numel()]
    some = sorted({filled[i * len(filled) // ENTRIES] for i in range(ENTRIES)})
    at = [(i, _place(blocks[i])) for i in some]
    got = torch.stack([blocks[i].flatten()[j] for i, j in at]).double()
    right = torch.stack([_entry(A, X, y, i, j) for i, j in at]).double()
    eps = max(torch.finfo(p.dtype).eps for p in A.risk.parameters.tensors)
    rounding = 1e-7 if eps < 1e-12 else 1e-2 if eps < 1e-6 else 0.2
    scale = max(float(d.abs().max()) for d in blocks if d.numel())
    bound = rounding * torch.maximum(got.abs(), right.abs()) + 100 * eps * scale
    if not bool(((got - right).abs() <= bound).all()):
        raise WrongDiagonalError(f"entries {at} are {got}, not {right}")


def _place(d: Tensor) -> int:
    """Of the largest entry; of the one in the middle where all are zero."""
    return int(d.abs().argmax()) if bool(d.any()) else d.numel() // 2


def _entry(A: CurvatureLinearOperator, X: Any, y: Any, i: int, j: int) -> Tensor:
    """Entry ``j`` of block ``i``, by a product of that diagonal block of the matrix."""
    shape = A.risk.parameters.tensors[i].shape
    v = torch.zeros(1, *shape, dtype=A.dtype, device=A.device)
    v.view(-1)[j] = 1
    _, ((product,), _) = A.only(slice(i, i + 1)).batch_product(X, y, [v])
    return product.flatten()[j]
