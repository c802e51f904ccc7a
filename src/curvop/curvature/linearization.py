"""A curvature matrix linearised once, for many products."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.curvature import nested
from curvop.curvature.columns import ChunkSize, at, chunks, leading, trailing
from curvop.curvature.determinism import probe, tolerance
from curvop.curvature.differentiation import concatenate
from curvop.curvature.distributed import all_reduce
from curvop.curvature.factored import Factoring, NotFactorableError
from curvop.curvature.kept_graph import KeptGraph
from curvop.curvature.merging import Batch, merge
from curvop.curvature.replay import Replay
from curvop.curvature.rows import ROWS_BYTES, dense_rows
from curvop.curvature.surroundings import surroundings
from curvop.curvature.tracing import Recordable, bind, record
from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from curvop.curvature.base import CurvatureLinearOperator

# Recording takes about as long as this many products.
REPAYS = 10
# Small batches are merged up to this many data and bytes of activations: Python overhead
# is negligible there, and what is larger falls out of the processor's caches.
MERGED_ROWS = 1024
MERGED_BYTES = 16 * 2**20

Piece = Callable[[Blocks], Blocks]  # the product of one batch, [K, *n_i] -> [K, *n_i]
Derivation = Callable[..., tuple[list[Piece], int]]
Form = Literal["rows", "factored", "recorded", "graphs"]


@final
class LinearizedLinearOperator(LinearOperator):
    """The same matrix as a curvature operator, with the work of a data pass kept.

    Made by :meth:`CurvatureLinearOperator.linearize`.
    """

    def __init__(
        self,
        op: CurvatureLinearOperator,
        pieces: Sequence[Piece],
        Z: Tensor,
        nbytes: int,
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
        self._pieces = tuple(pieces)
        self._Z = Z
        self._nbytes = nbytes
        self._form = form
        self._seconds = seconds
        self._versions = _versions(op._parameters.watched)

    def nbytes(self) -> int:
        """Bytes that are kept beyond parameters and data."""
        return self._nbytes

    @property
    def form(self) -> Form:
        """What is kept.

        ``"rows"``: the rows of the Jacobian. ``"factored"``: inputs and derivatives of
        each linear layer, whose products they are. ``"recorded"``: the part of the
        product that depends on parameters and data only. ``"graphs"``: autograd's.
        """
        return self._form

    @property
    def setup_seconds(self) -> float:
        """Seconds that it took to linearise."""
        return self._seconds

    def _matmat(self, M: Blocks) -> Blocks:
        if _versions(self._op._parameters.watched) != self._versions:
            raise ValueError(
                "The parameters (or buffers) of the model have changed since the operator "
                "was linearised: it would answer for the old ones. Call linearize() again."
            )
        V = leading(M)
        if V[0].shape[0] == 0:
            return M
        tensors = self._op._parameters.tensors
        V = [v.to(p.dtype) for v, p in zip(V, tensors, strict=True)]
        bar = tqdm(self._pieces, "linearised @", disable=not self._op._data.progressbar)
        sums = _sum((piece(V) for piece in bar), V, self.dtype)
        sums = all_reduce(sums, self._op._process_group)
        return trailing([(b / self._Z).to(self.dtype) for b in sums])

    def _transpose(self) -> LinearOperator:
        return self


def linearize(
    op: CurvatureLinearOperator,
    *,
    memory_budget: int | None,
    num_products: int,
    batch_size: int | None,
) -> LinearizedLinearOperator:
    """Implements :meth:`CurvatureLinearOperator.linearize`."""
    v = [b.to(op.dtype) for b in probe([p.detach()[None] for p in op._parameters.tensors])]
    start = time.perf_counter()
    with surroundings(op._data):
        batches = list(op._data.batches("linearize"))
        local, op = op._sum_over(batches, v)
        Z = op._divisor(*all_reduce(local[-2:], op._process_group))
        # whatever the form: its first product must be the one just computed
        right = local[:-2]
        forms: dict[Form, Derivation] = {"graphs": _graphs}
        if num_products >= REPAYS and op._parameters.functional:
            forms = {"rows": _rows, "factored": _factored, "recorded": _recorded, **forms}
        for form, derive in forms.items():
            try:
                pieces, nbytes = derive(op, batches, v, memory_budget, batch_size)
                _verify(pieces, v, right)
                break
            except Exception as error:
                if form == "graphs":
                    raise
                if form != "recorded":
                    continue
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(
                    f"The product cannot be recorded ({reason}). The linearised operator "
                    "keeps autograd's graphs instead.",
                    stacklevel=3,
                )
    seconds = time.perf_counter() - start
    return LinearizedLinearOperator(op, pieces, Z, nbytes, form, seconds)


def _rows(
    op: CurvatureLinearOperator,
    batches: Sequence[Batch],
    v: Blocks,
    budget: int | None,
    batch_size: int | None,
) -> tuple[list[Piece], int]:
    """The rows of the Jacobian, where they are so few that multiplying them is cheaper."""
    _expect_one_block(op)
    kept = []
    limit = ROWS_BYTES if budget is None else budget
    for X, y in batches:
        kept.append(dense_rows(op, X, y, v, limit))
        limit -= kept[-1].J.nbytes
    nbytes = sum(rows.J.nbytes + rows.B.nbytes for rows in kept)
    return [rows.product for rows in kept], nbytes


def _factored(
    op: CurvatureLinearOperator,
    batches: Sequence[Batch],
    v: Blocks,
    budget: int | None,
    batch_size: int | None,
) -> tuple[list[Piece], int]:
    """The factors of each layer, where they take fewer multiplications."""
    _expect_one_block(op)
    pieces: list[Piece] = []
    seen = _held(op, batches)
    total = 0
    for X, y in _merged(op, batches, batch_size):
        way = Factoring()
        op._with(_ways=(way,))._matmat_blocks(X, y, v)
        assert way.factors is not None
        new = _storages(way.factors.tensors(), besides=seen)
        seen |= new.keys()
        total += sum(new.values())
        if budget is not None and total > budget:
            raise NotFactorableError("the factors do not fit the budget")
        pieces.append(_in_chunks(way.factors.product, op._chunk_size))
    return pieces, total


def _expect_one_block(op: CurvatureLinearOperator) -> None:
    if len(op._blocks) > 1:
        raise NotFactorableError("the matrix is block-diagonal")


def _in_chunks(product: Piece, chunk: ChunkSize) -> Piece:
    def piece(V: Blocks) -> Blocks:
        return concatenate([product(at(V, c)) for c in chunks(V[0].shape[0], chunk)])

    return piece


def _recorded(
    op: CurvatureLinearOperator,
    batches: Sequence[Batch],
    v: Blocks,
    budget: int | None,
    batch_size: int | None,
) -> tuple[list[Piece], int]:
    """Replays of a recorded product, one recording for each shape of batch."""
    batches = _merged(op, batches, batch_size)
    params = [p.detach() for p in op._parameters.tensors]
    replays: dict[Any, Replay] = {}
    pieces: list[Piece] = []
    seen = _held(op, batches)
    total = 0
    for X, y in batches:
        data = list(nested.tensors((X, y)))
        key = (nested.structure((X, y)), tuple((t.shape, t.dtype) for t in data))
        if key not in replays:
            replays[key] = _record(op, X, y, params, data)
        replay, static = replays[key], (*params, *data)
        kept = replay.prepare(static)
        new = _storages(kept, besides=seen)
        if budget is not None and total + sum(new.values()) > budget:
            pieces.append(replay.from_scratch(static))
            continue
        seen |= new.keys()
        total += sum(new.values())
        pieces.append(replay.with_kept(kept))
    return pieces, total


def _record(
    op: CurvatureLinearOperator, X: Any, y: Any, params: list[Tensor], data: list[Tensor]
) -> Replay:
    """Record the product of one batch as a function of parameters, data and vector."""
    n, d = len(params), len(data)
    moving = [b[0] for b in probe([p[None] for p in params])]

    def product(*tensors: Tensor) -> list[Tensor]:
        fresh = iter(tensors[n : n + d])
        inputs, targets = nested.map_tensors(lambda _: next(fresh), (X, y))
        parameters = bind(op._parameters, tensors[:n])
        bound = op._with(_ways=(Recordable(),), _parameters=parameters)
        V = [v[None] for v in tensors[n + d :]]
        return [b[0] for b in bound._matmat_blocks(inputs, targets, V)[0]]

    return Replay(record(product, [*params, *data], moving))


def _merged(
    op: CurvatureLinearOperator, batches: Sequence[Batch], batch_size: int | None
) -> Sequence[Batch]:
    """Batches put together; that it does not change the matrix is verified later."""
    if batch_size is None and len(batches) > 1:
        X, y = batches[0]
        saved: dict[int, int] = {}
        with torch.enable_grad(), _noted(saved, besides=_held(op, batches)):
            op._predict([p.detach().requires_grad_() for p in op._parameters.tensors], X)
        bytes_per_row = sum(saved.values()) / op._data.batch_size(X, y)
        batch_size = min(MERGED_ROWS, int(MERGED_BYTES / max(bytes_per_row, 1)))
    return merge(batches, batch_size or 1)


def _graphs(
    op: CurvatureLinearOperator,
    batches: Sequence[Batch],
    v: Blocks,
    budget: int | None,
    batch_size: int | None,
) -> tuple[list[Piece], int]:
    """Double backward with autograd's graphs kept, as far as the budget allows."""
    pieces: list[Piece] = []
    total = 0
    held = _held(op, batches)
    for X, y in batches:
        saved: dict[int, int] = {}
        piece = _graph_piece(op, X, y, KeptGraph())
        with _noted(saved, besides=held):
            piece(v)
        if budget is not None and total + sum(saved.values()) > budget:
            piece = _scratch_piece(op, X, y)
        else:
            total += sum(saved.values())
        pieces.append(piece)
    return pieces, total


def _graph_piece(op: CurvatureLinearOperator, X: Any, y: Any, kept: KeptGraph) -> Piece:
    bound = op._with(_ways=(kept,))

    def piece(V: Blocks) -> Blocks:
        with surroundings(op._data):
            return kept.product(lambda: bound._matmat_blocks(X, y, V)[0])

    return piece


def _scratch_piece(op: CurvatureLinearOperator, X: Any, y: Any) -> Piece:
    def piece(V: Blocks) -> Blocks:
        with surroundings(op._data):
            return op._matmat_blocks(X, y, V)[0]

    return piece


def _verify(pieces: Sequence[Piece], v: Blocks, right: Sequence[Tensor]) -> None:
    """The first product must agree with the operator's own.

    Raises:
        RuntimeError: If it does not.
    """
    dtype = right[0].dtype
    got = _sum((piece(v) for piece in pieces), v, dtype)
    scale = max(float(b.abs().max()) for b in right)
    error = max(float((a - b).abs().max()) for a, b in zip(got, right, strict=True))
    if not error <= tolerance(dtype) * scale:
        raise RuntimeError(
            f"the linearised product is off by {error / scale:.1e} relative: its batches "
            "cannot be merged or its graph not be recorded"
        )


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


@contextmanager
def _noted(saved: dict[int, int], besides: set[int]) -> Iterator[None]:
    """Note the bytes of each storage that autograd saves."""

    def note(t: Tensor) -> Tensor:
        saved.update(_storages([t], besides))
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        yield


def _held(op: CurvatureLinearOperator, batches: Sequence[Batch]) -> set[int]:
    """Storages of model and data, which exist anyway."""
    tensors = [*op._parameters.watched, *nested.tensors(list(batches))]
    return {t.untyped_storage().data_ptr() for t in tensors}


def _storages(tensors: Sequence[Tensor], besides: set[int]) -> dict[int, int]:
    """Bytes of each storage that is not known yet, by its address."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors
    }
    return {where: n for where, n in storages.items() if where not in besides}


def _versions(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """What changes when a tensor is written to, or its data replaced."""
    return [(t._version, t.data_ptr()) for t in tensors]
