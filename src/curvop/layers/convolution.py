"""Convolutions and transposed ones: a matrix and patches, of inputs or of outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from curvop.layers.call import NUMBERS, MatrixCall

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

    def padded(self, z: Tensor) -> Tensor:
        """``z`` ``[N, C, *size]`` with zeros around it."""
        pairs = zip(reversed(self.before), reversed(self.after), strict=True)
        return F.pad(z, [n for pair in pairs for n in pair])  # the last axis leads

    def patches(self, z: Tensor) -> Tensor:
        """A view of ``z`` ``[N, C, *size]``: ``[C, *kernel, N, *out]``."""
        N, C, *size = z.shape
        z = self.padded(z)
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


class _Windowed(MatrixCall):
    """What convolutions and transposed ones share."""

    @property
    def is_batched(self) -> bool:
        """Whether there is an axis for data."""
        return len(self.shape) == len(self.weight_shape)

    @property
    def groups(self) -> int:
        """``G``."""
        return int(self.options.get("groups", 1))

    @property
    def window(self) -> Window:
        """Its window."""
        return Window.of(self.weight_shape, self.options)

    def _channels(self, X: Tensor, N: int) -> Tensor:
        """``[K, N f, G c, *s]`` by position, ``[K, G, N, f s, c]``."""
        K, G = len(X), self.groups
        X = X.reshape(K, N, -1, G, X.shape[2] // G, X.shape[3:].numel())
        return X.permute(0, 3, 1, 2, 5, 4).flatten(3, 4)

    def _seen(self, X: Tensor, K: int, N: int) -> Tensor:
        """What the window sees of ``[K N f, G c, *s]``, ``[K, G, N, f t, c k]``."""
        view = self.window.patches(X)
        n = view.shape[0] * math.prod(self.window.kernel) // self.groups
        return view.reshape(self.groups, n, K, N, -1).permute(2, 0, 3, 4, 1)

    def weight_gradient(self, u: Tensor) -> Tensor:
        """``Σ u ⊗ z``, by a kernel of torch."""
        window, z = self.window, self.z.detach()
        padding = window.before
        if window.before != window.after:
            z, padding = window.padded(z), (0,) * len(padding)
        batched = len(self.shape) == len(self.weight_shape)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            u if batched else u[None],
            z if batched else z[None],
            z.new_empty(()).expand(self.weight_shape),
            None,
            window.stride,
            padding,
            window.dilation,
            self.transposed,
            _each(self.options.get("output_padding", 0), len(padding)),
            self.groups,
            [False, True, False],
        )[1]
        return gradient


@final
@dataclass(frozen=True)
class Convolution(_Windowed):
    """``a = W z + b`` for the patch ``z`` of each position of the output."""

    functions: ClassVar[dict[Any, str]] = dict.fromkeys(
        (F.conv1d, F.conv2d, F.conv3d),
        "input weight bias stride padding dilation groups",
    )

    @property
    def multiplications(self) -> int:
        """Multiplications for one datum."""
        return self.size * self.input_size

    def inputs(self, N: int, data: slice = slice(None)) -> Tensor:
        """The patches, ``[G, n, T, d]``."""
        z = self._some(N, data)
        return self._seen(z, 1, len(range(N)[data]))[0]

    def input_sums(self, N: int) -> Tensor:
        """``Σ_t z`` of each datum: of each entry of the window."""
        view = self.window.patches(self.z.detach())
        space = self.z.ndim - 2
        total = view.sum(tuple(range(-space, 0))).flatten(0, -2)  # [C·k, N·f]
        return total.reshape(self.groups, -1, N, self.z.shape[0] // max(N, 1)).sum(-1).mT

    def row_chunks(self, N: int) -> Iterator[Tensor]:
        """Patches along all axes but the first, of some data: ``[G, d/k, H, .]``."""
        window, f = self.window.one_row(), self.z.shape[0] // max(N, 1)
        d = len(window.kernel)
        numbers = window.patches(self.z.detach()[:f]).numel()
        step = max(1, NUMBERS // max(numbers, 1))
        for n in range(0, N, step):
            view = window.patches(self._some(N, slice(n, n + step)))
            view = view.movedim(d + 2, d + 1)  # [C, *kernel, H, n, *out]
            n_row = self.weight_shape[1] * math.prod(window.kernel)
            yield view.reshape(self.groups, n_row, view.shape[d + 1], -1)

    def _some(self, N: int, data: slice) -> Tensor:
        """``z`` of some data: of all their frames, say."""
        f = self.z.shape[0] // max(N, 1)
        start, stop, _ = data.indices(N)
        return self.z.detach()[start * f : stop * f]

    def output_gradients(self, U: Tensor, N: int) -> Tensor:
        """``[K, G, N, T, m]``."""
        return self._channels(U, N)


@final
@dataclass(frozen=True)
class TransposedConvolution(_Windowed):
    """``Wᵀ z`` at each position of the input is added to what its window sees of ``a``.

    The gradient of the weight is ``Σ z ⊗ u`` with the patches ``u`` of the output's.
    """

    functions: ClassVar[dict[Any, str]] = dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        "input weight bias stride padding output_padding groups dilation",
    )
    transposed = True
    bias_apart = True

    @property
    def input_size(self) -> int:
        """``d``."""
        return self.weight_shape[0] // self.groups

    @property
    def multiplications(self) -> int:
        """Multiplications for one datum."""
        return self.z[:1].numel() * self.weight_shape[1:].numel()

    def num_positions(self, N: int) -> int:
        """``T``."""
        return self.z.numel() // max(N, 1) // self.weight_shape[0]

    def inputs(self, N: int, data: slice = slice(None)) -> Tensor:
        """``z``, ``[G, n, T, d]``."""
        return self._channels(self.z.detach()[None], N)[0][:, data]

    def output_gradients(self, U: Tensor, N: int) -> Tensor:
        """The patches, ``[K, G, N, T, m]``."""
        return self._seen(U.flatten(0, 1), len(U), N)

    def gradients_of_bias(self, U: Tensor, N: int) -> Tensor:
        """Gradients at the positions of the output."""
        return self._channels(U, N)
