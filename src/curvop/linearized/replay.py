"""A recorded product, replayed for one column or several."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, vmap
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from curvop.derivatives import apply_each, gather, is_refusal, some_columns
from curvop.linearized.rewriting import fuse
from curvop.linearized.tracing import Call, Recording, simplify
from curvop.operators import Blocks, differ

# Columns that one replay takes: Python overhead is amortised, memory stays bounded.
CHUNK = 8
# They are kept together unless that was so many times slower: timings are noisy.
SLOWER = 1.2

_CONVOLUTIONS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
}


class Replay:
    """The recorded product of one shape of batch.

    The graph for several columns is recorded when they first come, and remembered; what
    the object computes does not depend on it.

    Args:
        recording: The product.
        compiler: A backend of ``torch.compile`` for the part that is replayed.
    """

    def __init__(self, recording: Recording, compiler: str | None = None) -> None:
        self._primal = recording.primal
        self._tangent = recording.tangent
        self._single = copy.deepcopy(recording.tangent)  # what is fused has no batch rule
        fuse(self._single)
        self._compile: Callable[[fx.GraphModule], Call] = _as_it_is
        if compiler is not None:
            self._compile = partial(
                torch.compile, fullgraph=True, dynamic=False, backend=compiler
            )
        self._run_single = self._compile(self._single)
        self._wide: dict[int, Call | None] = {}
        # a batched convolution costs more per column than columns one by one
        targets = {n.target for n in recording.tangent.graph.nodes}
        self._chunk = 1 if targets & _CONVOLUTIONS else CHUNK

    def prepare(self, static: Sequence[Tensor]) -> list[Tensor]:
        """Run the primal part on parameters and data."""
        with torch.no_grad():
            return list(self._primal(*static))

    def warm_up(self, kept: Sequence[Tensor], v: Blocks) -> float:
        """Seconds that the first run takes beyond the second: those of the compiler."""
        with torch.no_grad():
            first, second = (_seconds(lambda: self._one(kept, v)) for _ in range(2))
        return max(first - second, 0.0)

    def with_kept(self, kept: Sequence[Tensor]) -> Callable[[Blocks], Blocks]:
        """The product for a batch whose primal part is kept."""
        return lambda V: self._replay(kept, V)

    def from_scratch(self, static: Sequence[Tensor]) -> Callable[[Blocks], Blocks]:
        """The product for a batch whose primal part is computed anew each time."""
        return lambda V: self._replay(self.prepare(static), V)

    def _replay(self, kept: Sequence[Tensor], V: Blocks) -> Blocks:
        """``[K, *n_i] -> [K, *n_i]``: full chunks together, the rest one by one."""
        K = V[0].shape[0]
        full = K - K % self._chunk
        parts = [slice(k, k + self._chunk) for k in range(0, full, self._chunk)]
        parts += [slice(k, k + 1) for k in range(full, K)]
        with torch.no_grad():
            return gather((self._some(kept, _alone(some_columns(V, c))) for c in parts), K)

    def _some(self, kept: Sequence[Tensor], V: Blocks) -> Blocks:
        K = V[0].shape[0]
        if K == 1:
            return self._one(kept, V)
        if K not in self._wide:
            self._wide[K] = self._widen(kept, V)
        wide = self._wide[K]
        if wide is None:
            return apply_each(lambda v: self._one(kept, v), V)
        return list(wide(*kept, *V))

    def _one(self, kept: Sequence[Tensor], v: Blocks) -> Blocks:
        single = self._run_single(*kept, *(column[0] for column in _alone(v)))
        return [b[None] for b in single]

    def _widen(self, kept: Sequence[Tensor], V: Blocks) -> Call | None:
        """The tangent part for several columns at once, if that is right and pays."""

        def columns(*tensors: Tensor) -> Any:
            fixed, moving = tensors[: len(kept)], tensors[len(kept) :]
            return vmap(lambda *v: self._tangent(*fixed, *v))(*moving)

        try:
            graph = make_fx(functionalize(columns))(*kept, *V)
        except Exception as error:
            if not is_refusal(error):
                raise
            return None
        simplify(graph)
        fuse(graph)

        run = self._compile(graph)

        def together() -> Blocks:
            return list(run(*kept, *V))

        def singly() -> Blocks:
            return apply_each(lambda v: self._one(kept, v), V)

        pairs = zip(together(), singly(), strict=True)  # which also warms up
        agree = not any(differ(a, b) for a, b in pairs)
        pays = agree and _seconds(together) < SLOWER * _seconds(singly)
        return run if pays else None


def _alone(V: Blocks) -> Blocks:
    """Columns in a storage of their own: recorded views count from its beginning."""
    whole = torch.contiguous_format
    is_alone = [v.is_contiguous() and not v.storage_offset() for v in V]
    return [
        v if alone else v.clone(memory_format=whole)
        for v, alone in zip(V, is_alone, strict=True)
    ]


def _as_it_is(graph: fx.GraphModule) -> Call:
    return graph


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
