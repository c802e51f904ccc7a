"""The calls of linear layers and convolutions in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from curvop.operators.layout import Blocks

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class Call:
    """One call ``a = W z + b`` of a layer that is linear in its parameters.

    Attributes:
        weight: Position of ``W`` among the parameters.
        bias: Position of ``b``, or ``None`` where it is missing or a constant.
        weight_shape: Shape of ``W``.
        z: What goes in.
        shape: The shape of ``a``.
        edge: Where the gradient with respect to ``a`` arrives. A tensor would not do:
            the next layer may write to it in place. ``None`` once the graph is gone.
        function: The function of ``torch.nn.functional``.
        options: Its further arguments.
    """

    weight: int
    bias: int | None
    weight_shape: Size
    z: Tensor
    shape: Size
    edge: GradientEdge | None
    function: Any
    options: dict[str, Any]

    @property
    def size(self) -> int:
        """Numbers that come out for one datum."""
        return self.shape[1:].numel()

    @property
    def multiplications(self) -> int:
        """Multiplications for one datum."""
        return self.size * self.weight_shape[1:].numel()

    def push(self, V: Tensor, c: Tensor | None) -> Tensor:
        """``V z + c``: how ``a`` moves with the parameters."""
        out: Tensor = self.function(self.z, V, c, **self.options)
        return out

    def outer(self, u: Tensor, W: Tensor) -> Tensor:
        """``Σ u ⊗ z`` for a convolution: the gradient of its weight; of ``W`` the shape."""
        d = W.ndim - 2
        stride, padding, dilation = (
            [n] * d if isinstance(n, int) else list(n)
            for n in (self.options.get(key, value) for key, value in _DEFAULTS)
        )
        gradient: Tensor = torch.ops.aten.convolution_backward(
            u,
            self.z,
            W,
            None,
            stride,
            padding,
            dilation,
            False,
            [0] * d,
            self.options.get("groups", 1),
            [False, True, False],
        )[1]
        return gradient


_DEFAULTS = (("stride", 1), ("padding", 0), ("dilation", 1))


@dataclass(eq=False)
class Calls(TorchFunctionMode):
    """Notes the calls whose weight is a parameter, for the time of the context.

    Such a call is made with a leaf of its own in place of the parameter, so that its
    part of a derivative can be told from that of other uses.

    Attributes:
        params: The parameters, as the model will be handed them.
        calls: The calls so far.
        leaves: Leaves in place of parameters, with the positions of those.
    """

    params: Sequence[Tensor]
    calls: list[Call] = field(default_factory=list)
    leaves: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make it a mode."""
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call, and note the call if it is one."""
        kwargs = kwargs or {}
        if func is not F.linear and func not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        bound = _arguments(func, args, kwargs)
        W = bound.pop("weight")
        weight = self._position(W)
        if weight is None or isinstance(bound.get("padding"), str):
            return func(*args, **kwargs)
        z, b = bound.pop("input"), bound.pop("bias")
        bias = self._position(b)
        a = func(
            z,
            self._leaf(weight),
            b if bias is None else self._leaf(bias),
            **bound,
        )
        if a.requires_grad:  # not so in the first pass of activation checkpointing
            self.calls.append(
                Call(weight, bias, W.shape, z, a.shape, get_gradient_edge(a), func, bound)
            )
        return a

    def multiplications(self) -> int:
        """Those of a product forward and back for one datum, in these layers alone.

        Where ``z`` is data, neither its tangent nor its gradient is needed.
        """
        return sum((4 if c.z.requires_grad else 2) * c.multiplications for c in self.calls)

    def edges(self) -> list[Any]:
        """Where the gradients with respect to the outputs arrive."""
        return [call.edge for call in self.calls]

    def hessian(self, loss: Tensor, v: Blocks) -> Blocks:
        """``∇²loss v`` for one column ``[1, *n_i]``, by double backward.

        A layer's part of ``<∇loss, v>`` is ``<δ, V z + c>`` with the gradient ``δ`` of
        its output: the gradient of its weight, a third of a backward pass, is not needed.
        """
        if not loss.requires_grad:
            return [torch.zeros_like(b) for b in v]
        V = [column[0] for column in v]
        pushed = [
            call.push(V[call.weight], None if call.bias is None else V[call.bias])
            for call in self.calls
        ]
        deltas = torch.autograd.grad(
            loss, [*self.edges(), *self.params], create_graph=True, allow_unused=True
        )
        pairs = list(zip(deltas, [*pushed, *V], strict=True))
        # d<δ, Vz + c> = <dδ, Vz + c> + <δ, V dz>
        pairs += [(p, d) for d, p in pairs[: len(pushed)] if d is not None]
        moving = [(t, u.detach()) for t, u in pairs if t is not None and t.requires_grad]
        if not moving:
            return [torch.zeros_like(b) for b in v]
        outs, us = zip(*moving, strict=True)
        inputs = [*self.params, *self.leaves.values()]
        slopes = torch.autograd.grad(outs, inputs, us, allow_unused=True)
        product: list[Tensor | None] = list(slopes[: len(V)])
        for i, slope in zip(self.leaves, slopes[len(V) :], strict=True):
            product[i] = _sum(product[i], slope)
        return [
            torch.zeros_like(b) if h is None else h[None]
            for h, b in zip(product, v, strict=True)
        ]

    def _position(self, t: Tensor | None) -> int | None:
        return next((i for i, p in enumerate(self.params) if p is t), None)

    def _leaf(self, i: int) -> Tensor:
        if i not in self.leaves:
            self.leaves[i] = self.params[i].detach().requires_grad_()
        return self.leaves[i]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with a bias that may be ``None``."""
    names = _NAMES[:3] if func is F.linear else _NAMES
    return {"bias": None, **dict(zip(names, args, strict=False)), **kwargs}
