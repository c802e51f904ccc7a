"""A recorded product, replayed for one column or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, vmap
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from curvop.curvature.columns import at
from curvop.curvature.determinism import differ
from curvop.curvature.differentiation import apply_each, concatenate
from curvop.curvature.tracing import Recording, simplify
from curvop.operators.layout import Blocks

# Columns that one replay takes: Python overhead is amortised, memory stays bounded.
CHUNK = 8

_CONVOLUTIONS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
}


class Replay:
    """The recorded product of one shape of batch.

    The graph for several columns is recorded when they first come, and remembered; what
    the object computes does not depend on it.
    """

    def __init__(self, recording: Recording) -> None:
        self._primal = recording.primal
        self._tangent = recording.tangent
        self._wide: dict[int, fx.GraphModule | None] = {}
        # a batched convolution costs more per column than columns one by one
        targets = {n.target for n in recording.tangent.graph.nodes}
        self._chunk = 1 if targets & _CONVOLUTIONS else CHUNK

    def prepare(self, static: Sequence[Tensor]) -> list[Tensor]:
        """Run the primal part on parameters and data."""
        with torch.no_grad():
            return list(self._primal(*static))

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
            return concatenate([self._some(kept, at(V, columns)) for columns in parts])

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
        return [b[None] for b in self._tangent(*kept, *(column[0] for column in v))]

    def _widen(self, kept: Sequence[Tensor], V: Blocks) -> fx.GraphModule | None:
        """The tangent part for several columns at once, if vmap gets it right."""

        def columns(*tensors: Tensor) -> Any:
            fixed, moving = tensors[: len(kept)], tensors[len(kept) :]
            return vmap(lambda *v: self._tangent(*fixed, *v))(*moving)

        graph = make_fx(functionalize(columns))(*kept, *V)
        simplify(graph)
        together, singly = graph(*kept, *V), apply_each(lambda v: self._one(kept, v), V)
        agree = not any(differ(a, b) for a, b in zip(together, singly, strict=True))
        return graph if agree else None
