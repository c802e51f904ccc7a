"""A curvature matrix linearised once, for many products."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.curvature.columns import leading, sized, trailing
from curvop.curvature.composed import with_its_kernels
from curvop.curvature.dependence import check_dependence
from curvop.curvature.differentiation import first_line, is_refusal
from curvop.curvature.distributed import all_reduce, failing_together
from curvop.curvature.factored import factored
from curvop.curvature.keeping import Effort, Kept, Piece
from curvop.curvature.kept_graph import graphs, scratch
from curvop.curvature.merging import Batch
from curvop.curvature.probing import probe, refuse_not_finite, tolerance
from curvop.curvature.recorded import recorded
from curvop.curvature.rows import rows
from curvop.curvature.surroundings import surroundings
from curvop.curvature.symmetry import check_columns
from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from curvop.curvature.base import CurvatureLinearOperator

Derivation = Callable[..., Kept]
Form = Literal["rows", "factored", "recorded", "graphs", "scratch"]


@final
class LinearizedLinearOperator(LinearOperator):
    """The same matrix as a curvature operator, with the work of a data pass kept.

    Made by :meth:`CurvatureLinearOperator.linearize`.
    """

    def __init__(
        self,
        op: CurvatureLinearOperator,
        kept: Kept,
        Z: Tensor,
        form: Form,
        seconds: float,
    ) -> None:
        super().__init__(
            op._domain,
            op._codomain,
            dtype=op.dtype,
            device=op.device,
            symmetric=op.symmetric,
            psd=op.psd,
        )
        self._op = op
        self._kept = kept
        self._Z = Z
        self._form = form
        self._seconds = seconds
        self._versions = versions(op._parameters.watched)

    def nbytes(self) -> int:
        """Bytes that are kept beyond parameters and data."""
        return self._kept.nbytes

    @property
    def form(self) -> Form:
        """What is kept.

        ``"rows"``: the rows of the Jacobian. ``"factored"``: inputs and derivatives of
        each linear layer, whose products they are. ``"recorded"``: the part of the
        product that depends on parameters and data only. ``"graphs"``: autograd's.
        ``"scratch"``: nothing, where no form gives the right product.
        """
        return self._form

    @property
    def setup_seconds(self) -> float:
        """Seconds that it took to linearise."""
        return self._seconds

    @property
    def compile_seconds(self) -> float:
        """Of these, seconds that the compiler took; zero without ``compile=True``."""
        return self._kept.compile_seconds

    @property
    def _columns_at_once(self) -> int | None:
        """A chunk, unless each product costs a collective."""
        if self._op._process_group is not None:
            return None
        return sized(self._op._chunk_size, self.shape[0])

    def _matmat(self, M: Blocks) -> Blocks:
        refuse_if_changed(self._op._parameters.watched, self._versions)
        V = leading(M)
        if V[0].shape[0] == 0:
            return M
        tensors = self._op._parameters.tensors
        V = [v.to(p.dtype) for v, p in zip(V, tensors, strict=True)]
        bar = tqdm(
            self._kept.pieces, "linearised @", disable=not self._op._data.progressbar
        )
        size, group = sum(v.numel() for v in V), self._op._process_group
        with failing_together(size, group, self.dtype, self.device):
            sums = _sum((piece(V) for piece in bar), V, self.dtype)
        sums = all_reduce(sums, group, same=V)
        refuse_not_finite(sums, V, self._op._parameters.names)
        return trailing([b.div_(self._Z).to(self.dtype) for b in sums])

    def _transpose(self) -> LinearOperator:
        return self


def linearize(
    op: CurvatureLinearOperator,
    *,
    memory_budget: int | None,
    num_products: int,
    batch_size: int | None,
    compile: bool | str,
) -> LinearizedLinearOperator:
    """Implements :meth:`CurvatureLinearOperator.linearize`."""
    v = [b.to(op.dtype) for b in probe([p.detach()[None] for p in op._parameters.tensors])]
    effort = Effort.asked_for(memory_budget, num_products, batch_size, compile)
    start = time.perf_counter()
    with surroundings(op._data):
        with failing_together(2, op._process_group, op.dtype, op.device):
            batches = list(op._data.batches("linearize"))
            local, op = op._sum_over(batches, v)
            if op._process_group is None and not any(bool(b.any()) for b in local[:-2]):
                check_dependence(op._parameters, op._data, op._loss)
            refuse_not_finite(local[:-2], v, op._parameters.names)
            op = with_its_kernels(op)
        Z = op._divisor(*all_reduce(local[-2:], op._process_group))
        # whatever the form: its first product must be the one just computed
        form, kept = _first_form(op, batches, v, effort, local[:-2])
    seconds = time.perf_counter() - start
    return LinearizedLinearOperator(op, kept, Z, form, seconds)


def _first_form(
    op: CurvatureLinearOperator,
    batches: Sequence[Batch],
    v: Blocks,
    effort: Effort,
    right: Sequence[Tensor],
) -> tuple[Form, Kept]:
    """The cheapest form that the curvature has and that gives the right product."""
    rounding = tolerance(*(p.dtype for p in op._parameters.tensors))
    rounding = max(rounding, 10 * (op.relative_error or 0.0))
    forms: dict[Form, Derivation] = {"graphs": graphs, "scratch": scratch}
    if effort.pays_recording and op._parameters.functional:
        forms = {"rows": rows, "factored": factored, "recorded": recorded, **forms}
    if effort.compiler is not None:
        forms = {"recorded": recorded}
    for form, derive in forms.items():
        try:
            kept = derive(op, batches, v, effort)
            _verify(kept.pieces, v, right, rounding)
            return form, kept
        except Exception as error:
            if len(forms) == 1 or form == "scratch":
                raise
            if form in ("rows", "factored"):
                continue  # a matter of speed only
            if not is_refusal(error):
                raise
            if form == "recorded" or op.relative_error is None:
                warn_not_kept(form, error)
    raise AssertionError  # the last form returns or raises


def warn_not_kept(form: Form, error: Exception) -> None:
    """Say why a form does not do, and what is kept instead."""
    what = {
        "recorded": ("The product cannot be recorded", "keeps autograd's graphs instead"),
        "graphs": ("Autograd's graphs do not do", "keeps nothing"),
    }
    refused, instead = what[form]
    warnings.warn(
        f"{refused} ({first_line(error)}). The linearised operator {instead}.",
        stacklevel=5,
    )


def _verify(
    pieces: Sequence[Piece], v: Blocks, right: Sequence[Tensor], rounding: float
) -> None:
    """The first product must agree with the operator's own.

    Raises:
        RuntimeError: If it does not, or that of several columns.
    """
    dtype = right[0].dtype
    parts = [piece(v) for piece in pieces[:1]]
    got = _sum(itertools.chain(parts, (piece(v) for piece in pieces[1:])), v, dtype)
    scale = max(float(b.abs().max()) for b in right if b.numel())
    pairs = [(a, b) for a, b in zip(got, right, strict=True) if b.numel()]
    error = max(float((a - b).abs().max()) for a, b in pairs)
    if not error <= rounding * scale:
        raise RuntimeError(
            f"the linearised product is off by {error / scale:.1e} relative: its batches "
            "cannot be merged or its graph not be recorded"
        )
    for one in parts:
        two = pieces[0]([torch.cat([b, 2 * b]) for b in v])
        check_columns(one, [b[1:] / 2 for b in two], 4 * rounding)


def _sum(parts: Any, V: Blocks, dtype: torch.dtype) -> list[Tensor]:
    """Sum of the pieces' products, in at least single precision."""
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


def versions(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """What changes when a tensor is written to, or its data replaced."""
    return [(t._version, t.data_ptr()) for t in tensors]


def refuse_if_changed(tensors: Sequence[Tensor], before: list[tuple[int, int]]) -> None:
    """Refuse to answer for tensors that have changed.

    Raises:
        ValueError: If they have.
    """
    if versions(tensors) != before:
        raise ValueError(
            "The parameters (or buffers) of the model have changed since the operator "
            "was linearised: it would answer for the old ones. Call linearize() again."
        )
