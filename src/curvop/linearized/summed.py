"""Curvature matrices linearised: a product of each batch, summed over the data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.curvature import CurvatureLinearOperator, Form
from curvop.linearized.budget import BatchProduct, Budget, Kept
from curvop.linearized.choice import first_right, verify, verify_columns
from curvop.linearized.factored import factored, rows
from curvop.linearized.graphs import graphs, scratch
from curvop.linearized.recorded import recorded
from curvop.operators import Blocks, probe, refuse_not_finite, tolerance
from curvop.risk import Batch, Risk, all_reduce, failing_together

FORMS: dict[Form, Callable[..., Kept[BatchProduct]]] = {
    "rows": rows,
    "factored": factored,
    "recorded": recorded,
    "graphs": graphs,
    "scratch": scratch,
}


@final
@dataclass(frozen=True)
class Summed:
    """``1/Z Σ`` of the batches' products, over all ranks.

    Attributes:
        kept: The batches.
        risk: The risk.
        Z: Its divisor.
    """

    kept: Kept[BatchProduct]
    risk: Risk
    Z: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that are kept beyond parameters and data."""
        return self.kept.nbytes

    @property
    def compile_seconds(self) -> float:
        """Seconds that a compiler took."""
        return self.kept.compile_seconds

    @property
    def travels(self) -> bool:
        """Whether each product costs a collective."""
        return self.risk.process_group is not None

    def multiply(self, V: Blocks) -> Blocks:
        """``A V``."""
        at, group = self.risk.parameters, self.risk.process_group
        is_silent = not self.risk.data.progressbar
        bar = tqdm(self.kept.batches, "linearised @", disable=is_silent)
        with failing_together(sum(v.numel() for v in V), group, at.dtype, at.device):
            sums = _sum((product(V) for product in bar), V, at.dtype)
        return [b.div_(self.Z) for b in all_reduce(sums, group, same=V)]

    def multiply_transposed(self, U: Blocks) -> Blocks:
        """The same: the matrix is symmetric."""
        return self.multiply(U)


def first_form(op: CurvatureLinearOperator, budget: Budget) -> tuple[Form, Summed]:
    """The cheapest form that the curvature has and that gives the right product."""
    at, group = op.risk.parameters, op.risk.process_group
    v = [b.to(op.dtype) for b in probe([p.detach()[None] for p in at.tensors])]
    with op.risk.context():
        with failing_together(2, group, op.dtype, op.device):
            batches = list(op.risk.data.batches("linearize"))
            local, op = op.sum_over(batches, v)
            if group is None and not any(bool(b.any()) for b in local[:-2]):
                op.risk.check_dependence()
            refuse_not_finite(local[:-2], v, at.names)
            op = op.with_kernels_of_its_way()
        Z = op.risk.divisor(*all_reduce(local[-2:], group))
        # whatever the form: its first product must be the one just computed
        form, kept = _kept(op, batches, v, budget, local[:-2])
    return form, Summed(kept, op.risk, Z)


def of_form(form: Form, op: CurvatureLinearOperator, v: Blocks) -> Summed:
    """One form, derived without comparing it with others or the operator."""
    with op.risk.context():
        batches = list(op.risk.data.batches("linearize"))
        kept = FORMS[form](op, batches, v, Budget.asked_for(None, 100, None, False))
        return Summed(kept, op.risk, op.risk.divisor_over(batches))


def _kept(
    op: CurvatureLinearOperator,
    batches: Sequence[Batch],
    v: Blocks,
    budget: Budget,
    right: Sequence[Tensor],
) -> tuple[Form, Kept[BatchProduct]]:
    rounding = tolerance(*(p.dtype for p in op.risk.parameters.tensors))
    rounding = max(rounding, 10 * (op.relative_error or 0.0))
    forms: tuple[Form, ...] = ("graphs", "scratch")
    if budget.pays_recording and op.risk.parameters.functional:
        forms = ("rows", "factored", "recorded", *forms)
    if budget.compiler is not None:
        forms = ("recorded",)
    return first_right(
        [(form, partial(FORMS[form], op, batches, v, budget)) for form in forms],
        lambda kept: _check(kept.batches, v, right, rounding),
        is_rough=op.relative_error is not None,
    )


def _check(
    batches: Sequence[BatchProduct], v: Blocks, right: Sequence[Tensor], rounding: float
) -> None:
    parts = [product(v) for product in batches[:1]]
    rest = (product(v) for product in batches[1:])
    verify(_sum(itertools.chain(parts, rest), v, right[0].dtype), right, rounding)
    for one in parts:
        verify_columns(one, batches[0], v, rounding)


def _sum(parts: Iterable[Blocks], V: Blocks, dtype: torch.dtype) -> list[Tensor]:
    """Sum of the batches' products, in at least single precision."""
    wide = torch.promote_types(dtype, torch.float32)
    sums: list[Tensor] | None = None
    for part in parts:
        if sums is None:
            sums = [p.to(wide, copy=True) for p in part]
        else:
            for total, p in zip(sums, part, strict=True):
                total += p
    # a rank without data contributes nothing
    return sums or [torch.zeros_like(b, dtype=wide) for b in V]
