"""Linear layers: ``a = W z + b`` at each position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch.nn.functional as F
from torch import Tensor

from curvop.layers.call import MatrixCall


@final
@dataclass(frozen=True)
class Linear(MatrixCall):
    """``z`` is ``[N, ..., d]``, and ``a`` ``[N, ..., m]``."""

    functions: ClassVar[dict[Any, str]] = {F.linear: "input weight bias"}

    @property
    def is_batched(self) -> bool:
        """Whether there is an axis for data."""
        return len(self.shape) > 1 and len(self.weight_shape) == 2

    @property
    def multiplications(self) -> int:
        """Multiplications for one datum."""
        return self.size * self.input_size

    def inputs(self, N: int, data: slice = slice(None)) -> Tensor:
        """``z``, ``[1, n, T, d]``."""
        d = self.z.shape[-1]
        return self.z.detach().reshape(N, -1, d)[data][None]

    def input_chunks(self, N: int) -> Iterator[tuple[slice, Tensor]]:
        """All at once: no number is copied."""
        yield slice(0, N), self.inputs(N)

    def output_gradients(self, U: Tensor, N: int) -> Tensor:
        """``[K, 1, N, T, m]``."""
        return U.reshape(len(U), 1, N, -1, U.shape[-1])
