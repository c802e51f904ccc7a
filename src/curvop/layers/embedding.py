"""Embeddings: ``a`` is row ``W_v`` at a position with token ``v``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from curvop.layers.call import Call

_ARGUMENTS = "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse"


@final
@dataclass(frozen=True)
class Embedding(Call):
    """``z`` are tokens ``[N, ...]``, in place of the unit vectors ``e_v``."""

    functions: ClassVar[dict[Any, str]] = {F.embedding: _ARGUMENTS}
    form = "table"

    @classmethod
    def input_of(cls, function: Any, named: dict[str, Any]) -> Tensor | None:
        """The tokens."""
        if named.get("max_norm") is not None or named.get("scale_grad_by_freq"):
            return None
        z: Tensor = named["input"]
        return z

    @property
    def is_batched(self) -> bool:
        """Whether there is an axis for data."""
        return len(self.shape) > 1

    @property
    def multiplications(self) -> int:
        """None: rows are looked up."""
        return 0

    @property
    def padding(self) -> int | None:
        """The token whose row is a constant, or ``None``."""
        i = self.options.get("padding_idx")
        return None if i is None else i % self.weight_shape[0]

    def tokens(self, N: int) -> Tensor:
        """``[N, T]``."""
        return self.z.reshape(N, -1)

    def jvp(self, V: Tensor | None, c: Tensor | None) -> Tensor:
        """The rows of ``V``."""
        assert V is not None
        out = F.embedding(self.z, V)
        return out if self.padding is None else out * (self.z != self.padding)[..., None]

    def output_gradients(self, U: Tensor, N: int) -> Tensor:
        """``[K, 1, N, T, D]``; zero where a row is a constant."""
        U = U.reshape(len(U), 1, N, -1, U.shape[-1])
        if self.padding is None:
            return U
        return U * (self.tokens(N) != self.padding)[..., None]

    def keys(self, N: int) -> Tensor:
        """Data and tokens by position, ``n V + v``: ``[N·T]``."""
        first = torch.arange(N, device=self.z.device)[:, None] * self.weight_shape[0]
        return (self.tokens(N) + first).flatten()

    def weight_gradients(self, U: Tensor, N: int) -> Tensor:
        """Gradients of equal tokens are summed."""
        V, D = self.weight_shape
        rows = self.output_gradients(U, N).reshape(len(U), -1, D)
        out = U.new_zeros(len(U), N * V, D).index_add_(1, self.keys(N), rows)
        return out.view(len(U), N, V, D)
