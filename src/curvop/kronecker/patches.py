"""What each output of a convolution sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch.nn.functional as F
from torch import Size, Tensor

Each = tuple[int, ...]


@final
@dataclass(frozen=True)
class Window:
    """The window of a convolution, by axis.

    Attributes:
        kernel: Its size.
        stride: From one window to the next.
        dilation: From one row in the window to the next.
        before: Zeros before the first row.
        after: Zeros after the last.
    """

    kernel: Each
    stride: Each
    dilation: Each
    before: Each
    after: Each

    @classmethod
    def of(cls, shape: Size, options: dict[str, Any]) -> Window:
        """That of a call with a weight of this shape."""
        kernel = tuple(shape[2:])
        d = len(kernel)
        stride, dilation = (_each(options.get(k, 1), d) for k in ("stride", "dilation"))
        padding = options.get("padding", 0)
        if padding == "same":  # where it is uneven, the end gets more
            total = [by * (k - 1) for k, by in zip(kernel, dilation, strict=True)]
            before = tuple(t // 2 for t in total)
            after = tuple(t - t // 2 for t in total)
        else:
            before = after = _each(0 if padding == "valid" else padding, d)
        return cls(kernel, stride, dilation, before, after)

    def one_row(self) -> Window:
        """With one row along the first axis, and no zeros there."""
        return replace(
            self,
            kernel=(1, *self.kernel[1:]),
            before=(0, *self.before[1:]),
            after=(0, *self.after[1:]),
        )

    def out(self, size: Sequence[int]) -> list[int]:
        """Positions along each axis of an image."""
        zeros = zip(self.before, self.after, strict=True)
        axes = zip(size, zeros, self.kernel, self.dilation, self.stride, strict=True)
        return [(s + sum(z) - by * (k - 1) - 1) // n + 1 for s, z, k, by, n in axes]

    def patches(self, z: Tensor) -> Tensor:
        """A view of ``z`` ``[N, C, *size]``: ``[C, *kernel, N, *out]``."""
        N, C, *size = z.shape
        pairs = zip(reversed(self.before), reversed(self.after), strict=True)
        z = F.pad(z, [n for pair in pairs for n in pair])  # the last axis leads
        of_N, of_C, *of = z.stride()
        return z.as_strided(
            (C, *self.kernel, N, *self.out(size)),
            (
                of_C,
                *(s * by for s, by in zip(of, self.dilation, strict=True)),
                of_N,
                *(s * step for s, step in zip(of, self.stride, strict=True)),
            ),
        )


def _each(n: Any, d: int) -> Each:
    sizes = (n,) if isinstance(n, int) else tuple(int(size) for size in n)
    return sizes * d if len(sizes) == 1 else sizes
