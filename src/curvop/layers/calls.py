"""The calls of linear layers and convolutions in a forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from curvop.operators import Blocks

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


class _LinearMode(TorchFunctionMode, ABC):
    """Changes the calls of linear layers and convolutions whose weight is a parameter.

    Args:
        params: The parameters, as the model will be handed them.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__()
        self.params = params

    @abstractmethod
    def _call(
        self,
        function: Any,
        z: Tensor,
        weight: int,
        bias: int | None,
        b: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        """What to do instead."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call as usual, or as the subclass says."""
        kwargs = kwargs or {}
        if func is not F.linear and func not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        options = _arguments(func, args, kwargs)
        weight = self._position(options.pop("weight"))
        if weight is None or isinstance(options.get("padding"), str):
            return func(*args, **kwargs)
        z, b = options.pop("input"), options.pop("bias")
        return self._call(func, z, weight, self._position(b), b, options)

    def _position(self, t: Tensor | None) -> int | None:
        return next((i for i, p in enumerate(self.params) if p is t), None)


@final
class Duals(_LinearMode):
    """Forward mode by hand through layers whose input is data, within the context.

    Torch would multiply the tangent of the data, which is zero, with the weight.

    Args:
        duals: The parameters, dual numbers.
        primals: Their values, in the graph.
        V: Their tangents.
    """

    def __init__(
        self, duals: Sequence[Tensor], primals: Sequence[Tensor], V: Sequence[Tensor]
    ) -> None:
        super().__init__(duals)
        self.primals = primals
        self.V = V

    def _call(
        self,
        function: Any,
        z: Tensor,
        weight: int,
        bias: int | None,
        b: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        if z.requires_grad:
            dual_b = b if bias is None else self.params[bias]
            out: Tensor = function(z, self.params[weight], dual_b, **options)
            return out
        with torch.no_grad():
            da = function(
                z, self.V[weight], None if bias is None else self.V[bias], **options
            )
        primal_b = b if bias is None else self.primals[bias]
        a = function(z, self.primals[weight], primal_b, **options)
        dual: Tensor = forward_ad.make_dual(a, da)
        return dual


@final
class Calls(_LinearMode):
    """Notes the calls, for the time of the context.

    A call is made with a leaf of its own in place of the parameter, so that its part of a
    derivative can be told from that of other uses.

    Attributes:
        calls: The calls so far.
        leaves: Leaves in place of parameters, by the positions of those.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__(params)
        self.calls: list[Call] = []
        self.leaves: dict[int, Tensor] = {}

    def _call(
        self,
        function: Any,
        z: Tensor,
        weight: int,
        bias: int | None,
        b: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        b = b if bias is None else self._leaf(bias)
        a: Tensor = function(z, self._leaf(weight), b, **options)
        if a.requires_grad:  # not so in the first pass of activation checkpointing
            a = detached_from_base(a)
            shape, edge = self.params[weight].shape, get_gradient_edge(a)
            self.calls.append(
                Call(weight, bias, shape, z, a.shape, edge, function, options)
            )
        return a

    def _leaf(self, i: int) -> Tensor:
        if i not in self.leaves:
            self.leaves[i] = self.params[i].detach().requires_grad_()
        return self.leaves[i]

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


def detached_from_base(a: Tensor) -> Tensor:
    """``a`` as no view: what is written to it in place leaves its gradient edge in use.

    ``F.linear`` returns a view for more than two dimensions, and writing to a view makes
    autograd go around it.
    """
    if not a._is_view():
        return a
    out: Tensor = torch.ops.aten._unsafe_view(a, a.shape)
    return out


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with a bias that may be ``None``."""
    names = _NAMES[:3] if func is F.linear else _NAMES
    return {"bias": None, **dict(zip(names, args, strict=False)), **kwargs}
