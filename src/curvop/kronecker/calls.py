"""What a call of a layer contributes: rows of inputs, and of slopes with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from einops import rearrange
from torch import Size, Tensor

from curvop.kronecker.patches import Window

# Numbers that the patches of a convolution may take at once.
PATCHES = 2**22


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer with ``N`` data, ``T`` positions each.

    Attributes:
        weight: Position of its weight among the parameters, or ``None``.
        bias: Position of its bias, or ``None``.
        num_data: ``N``.
        size: Numbers that go in.
        index: Position among the calls of the forward pass.
    """

    weight: int | None
    bias: int | None
    num_data: int
    size: int
    index: int

    def without_inputs(self) -> LayerCall:
        """What slopes need, without the memory of what does not."""
        return self

    def by_datum(self, g: Tensor) -> Tensor:
        """The gradient with respect to ``a``, ``[N, ...]``."""
        return g.reshape(self.num_data, -1)


@final
@dataclass(frozen=True)
class MatrixCall(LayerCall):
    """``a = W z + b`` at each position: a linear layer, or a convolution.

    A convolution multiplies patches; one with ``G`` groups is ``G`` layers side by side.

    Attributes:
        z: What goes in.
        version: That of ``z`` when the layer was called.
        shape: Shape of ``W``.
        options: Of a convolution; ``None`` for a linear layer.
        data_last: Whether positions lead and data follow, as inside of attention.
    """

    z: Tensor
    version: int
    shape: Size
    options: dict[str, Any] | None
    data_last: bool = False

    def without_inputs(self) -> MatrixCall:
        """The call without ``z``."""
        return replace(self, z=self.z.new_empty(0))

    def check(self) -> None:
        """Refuse an input that is no longer what it was.

        Raises:
            ValueError: If it has been written to.
        """
        if self.z._version != self.version:
            raise ValueError(
                "The model writes in place to the input of a layer after the call, which "
                "autograd does not support either. Write out of place there."
            )

    @property
    def groups(self) -> int:
        """``G``."""
        return 1 if self.options is None else int(self.options.get("groups", 1))

    def by_datum(self, g: Tensor) -> Tensor:
        """The gradient with respect to ``a``, ``[N, ...]``."""
        return (self._rows(g) if self.options is None else g).reshape(self.num_data, -1)

    def _rows(self, x: Tensor) -> Tensor:
        """What goes in or out of a linear layer, ``[N, T, .]``."""
        N, d = self.num_data, x.shape[-1]
        return (
            x.reshape(-1, N, d).transpose(0, 1) if self.data_last else x.reshape(N, -1, d)
        )

    def slopes(self, g: Tensor) -> Tensor:
        """The gradient with respect to ``a``, by position: ``[G, a, N, T]``."""
        N = self.num_data
        if self.options is None:
            return rearrange(self._rows(g), "n t a -> 1 a n t")
        return rearrange(g, "(n m) (G a) ... -> G a n (m ...)", n=N, G=self.groups)

    def inputs(self) -> Iterator[tuple[slice, Tensor]]:
        """Some data, and their ``z`` by position: ``[G, d, n, T]``."""
        N = self.num_data
        if self.options is None:
            yield slice(0, N), rearrange(self._rows(self.z), "n t d -> 1 d n t")
            return
        d = self.shape[1:].numel()
        for some, view in self._patches(self.window()):
            yield some, view.reshape(self.groups, d, some.stop - some.start, -1)

    def rows(self) -> Iterator[Tensor]:
        """Patches along all axes but the first, of some data: ``[G, n, H, .]``."""
        window = self.window().one_row()
        n = self.shape[1] * math.prod(window.kernel)
        for _, view in self._patches(window):  # [C, *kernel, N, H, *out]
            d = len(window.kernel)
            view = view.movedim(d + 2, d + 1)
            yield view.reshape(self.groups, n, view.shape[d + 1], -1)

    def num_positions(self) -> int:
        """Of all data, where the layer is a convolution."""
        return len(self.z) * math.prod(self.window().out(self.z.shape[2:]))

    def window(self) -> Window:
        """That of a convolution."""
        return Window.of(self.shape, self.options or {})

    def _patches(self, window: Window) -> Iterator[tuple[slice, Tensor]]:
        """Some data, and a view of what the window sees of them."""
        N = self.num_data
        m = len(self.z) // max(N, 1)  # frames of a video, say
        step = max(1, PATCHES // max(window.patches(self.z[:m]).numel(), 1))
        for start in range(0, N, step):
            some = slice(start, min(start + step, N))
            yield some, window.patches(self.z[some.start * m : some.stop * m])

    def mean_inputs(self) -> tuple[Tensor, int]:
        """The sum of ``z`` over the positions of each datum, ``[G, d, N]``, and ``T``."""
        N = self.num_data
        if self.options is None:
            z = self._rows(self.z)
            return z.sum(1).T[None], z.shape[1]
        view = self.window().patches(self.z)
        space = self.z.ndim - 2
        total = view.sum(tuple(range(-space, 0))).flatten(0, -2)  # [C·k, N·m]
        T = view.shape[-space:].numel() * (len(self.z) // max(N, 1))
        return total.reshape(self.groups, -1, N, len(self.z) // max(N, 1)).sum(-1), T


@final
@dataclass(frozen=True)
class TableCall(LayerCall):
    """An embedding: ``a`` is row ``W_v`` at a position with token ``v``.

    Attributes:
        tokens: ``[N, T]``.
        shape: Shape of ``W``.
        padding: The token whose row is a constant, or ``None``.
    """

    tokens: Tensor
    shape: Size
    padding: int | None

    def slopes(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of data and tokens that count: keys ``n V + v``, slopes ``[., D]``."""
        V, D = self.shape
        first = torch.arange(self.num_data, device=g.device)[:, None] * V
        keys, g = (self.tokens + first).flatten(), g.reshape(-1, D)
        if self.padding is None:
            return keys, g
        counts = self.tokens.flatten() != self.padding
        return keys[counts], g[counts]

    def counts(self, dtype: torch.dtype) -> Tensor:
        """How often each token comes, ``[V]``."""
        V = self.shape[0]
        n = torch.bincount(self.tokens.flatten(), minlength=V).to(dtype)
        if self.padding is not None:
            n[self.padding] = 0
        return n


@final
@dataclass(frozen=True)
class ScaleCall(LayerCall):
    """``a = γ x̂ + β``: scale and shift of a normalisation.

    Attributes:
        x: The normalised input ``[N, T, D]``, or ``None`` without a scale.
        axis: Where ``D`` is: one axis, or all from it on.
        is_channel: Whether it is one axis.
    """

    x: Tensor | None
    axis: int
    is_channel: bool

    def slopes(self, g: Tensor) -> Tensor:
        """The gradient with respect to ``a``, ``[N, T, D]``."""
        return by_feature(g, self.num_data, self.axis, self.is_channel)


def by_feature(x: Tensor, N: int, axis: int, is_channel: bool) -> Tensor:
    """``[N, T, D]`` with the features of a normalisation last."""
    if is_channel:
        x = x.movedim(axis, -1)
        return x.reshape(N, -1, x.shape[-1])
    return x.reshape(N, -1, math.prod(x.shape[axis:]))
