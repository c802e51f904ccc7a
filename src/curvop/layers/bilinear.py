"""Bilinear layers: linear in the products of two inputs, ``a = W (x ⊗ y) + b``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch.nn.functional as F
from torch import Tensor

from curvop.layers.call import Call, MatrixCall


@final
@dataclass(frozen=True)
class Bilinear(MatrixCall):
    """``z`` is ``x``; ``y`` is among the options."""

    functions: ClassVar[dict[Any, str]] = {F.bilinear: "input1 input2 weight bias"}

    @classmethod
    def input_of(cls, function: Any, named: dict[str, Any]) -> Tensor | None:
        """``x``."""
        x: Tensor = named["input1"]
        return x

    @property
    def is_batched(self) -> bool:
        """Whether there is an axis for data."""
        return len(self.shape) > 1

    @property
    def multiplications(self) -> int:
        """Multiplications for one datum."""
        return self.size * self.input_size

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Both inputs."""
        return self.z, self.options["input2"]

    def map_inputs(self, fn: Callable[[Tensor], Tensor]) -> Call:
        """With ``fn`` of both inputs."""
        x, y = map(fn, self.tensors)
        return replace(self, z=x, options={"input2": y})

    def jvp(self, V: Tensor | None, c: Tensor | None) -> Tensor:
        """``V (x ⊗ y) + c``."""
        if V is None:
            assert c is not None
            return c.expand(self.shape)
        out: Tensor = self.function(*self.tensors, V, c)
        return out

    def inputs(self, N: int, data: slice = slice(None)) -> Tensor:
        """``x ⊗ y``, ``[1, n, T, d]``."""
        x, y = (t.detach().reshape(N, -1, t.shape[-1])[data] for t in self.tensors)
        return (x[..., :, None] * y[..., None, :]).flatten(2)[None]

    def output_gradients(self, U: Tensor, N: int) -> Tensor:
        """``[K, 1, N, T, m]``."""
        return U.reshape(len(U), 1, N, -1, U.shape[-1])
