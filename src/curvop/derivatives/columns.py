"""Columns of matrices: their axis leads inside the library, and is cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Literal

from torch import Tensor

from curvop.operators import Blocks

Apply = Callable[[Blocks], Blocks]  # [K, *n_i] -> [K, *m_i]
ChunkSize = int | None | Literal["auto"]

# Columns in a chunk. Eight amortise Python's overhead; each column needs the memory of the
# activations once more, for its tangents.
AUTO_CHUNK = 8
# For small models more: as long as a chunk of parameters or inputs has fewer numbers.
AUTO_NUMBERS = 2**20


def leading(M: Blocks) -> Blocks:
    """``[*n_i, K] -> [K, *n_i]``, each column contiguous."""
    V = [b.movedim(-1, 0) for b in M]
    V = [v if len(v) and v[0].is_contiguous() else v.contiguous() for v in V]
    # autograd refuses to save tensors made in inference mode
    return [v.clone() if v.is_inference() else v for v in V]


def trailing(V: Blocks) -> Blocks:
    """``[K, *n_i] -> [*n_i, K]``, a view."""
    return [b.movedim(0, -1) for b in V]


def sized(chunk: ChunkSize, numbers: int) -> int | None:
    """The chunk for a model with that many parameters (or inputs, if those are more)."""
    if chunk == "auto":
        return max(AUTO_CHUNK, AUTO_NUMBERS // max(numbers, 1))
    return chunk


def chunks(K: int, size: ChunkSize) -> Iterator[slice]:
    """Consecutive slices of ``range(K)``, the last one possibly shorter."""
    step = AUTO_CHUNK if size == "auto" else size or K
    return (slice(k, min(k + step, K)) for k in range(0, K, step))


def check_chunk_size(size: object) -> None:
    """Refuse anything but a positive integer, ``None`` and ``"auto"``.

    Raises:
        ValueError: If it is something else.
    """
    if size is None or size == "auto":
        return
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise ValueError(
            "Expected chunk_size as a positive integer, 'auto', or None for all columns "
            f"at once, got {size!r}."
        )


def some_columns(V: Sequence[Tensor], columns: slice) -> Blocks:
    """Some of the columns."""
    return [v[columns] for v in V]


def gather(parts: Iterable[Blocks], K: int) -> Blocks:
    """Chunks of columns put together, one at a time: ``K`` in all."""
    out: Blocks = []
    k = 0
    for part in parts:
        n = part[0].shape[0]
        if n == K:
            return list(part)
        out = out or [b.new_empty(K, *b.shape[1:]) for b in part]
        for whole, b in zip(out, part, strict=True):
            whole[k : k + n] = b
        k += n
    return out


def apply_each(apply: Apply, V: Blocks) -> Blocks:
    """Apply a function of one column ``[1, *n_i]`` to each of ``K`` columns."""
    K = V[0].shape[0]
    return gather((apply([v[k : k + 1] for v in V]) for k in range(K)), K)
