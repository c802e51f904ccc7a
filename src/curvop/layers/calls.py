"""The calls of layers in a forward pass, seen without touching the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from curvop.autograd import leaves_of
from curvop.layers.attention import attention
from curvop.layers.bilinear import Bilinear
from curvop.layers.call import Call
from curvop.layers.convolution import Convolution, TransposedConvolution
from curvop.layers.embedding import Embedding
from curvop.layers.linear import Linear
from curvop.layers.norms import Norm
from curvop.layers.recurrent import LOOPS, is_packed
from curvop.operators import Blocks

OnGradient = Callable[[int, Tensor], None]  # position of a call, gradient of its output
Table = dict[Any, tuple[type[Call], list[str]]]


def _table(*kinds: type[Call]) -> Table:
    return {
        f: (kind, names.split()) for kind in kinds for f, names in kind.functions.items()
    }


# Layers that multiply matrices, where it pays to look at each; and all that are known.
MATRICES = _table(Linear, Convolution, TransposedConvolution, Bilinear)
EVERY = MATRICES | _table(Embedding, Norm)
# Functions that call layers within, and the same with these layers in sight.
OPENED: dict[Any, Callable[..., Any]] = {F.multi_head_attention_forward: attention, **LOOPS}


class _LayerMode(TorchFunctionMode, ABC):
    """Changes the calls of layers that have one of the parameters.

    Args:
        params: The parameters, as the model will be handed them.
        every: Whether norms and embeddings are layers, too, as are those inside of
            attention and recurrent ones; or only what multiplies matrices.
    """

    def __init__(self, params: Sequence[Tensor], *, every: bool = False) -> None:
        super().__init__()
        self.params = params
        self._table = EVERY if every else MATRICES
        self._opened = OPENED if every else {}
        self._position = {id(p): i for i, p in enumerate(params)}

    def _opens(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether to look inside of a function: where it is handed parameters."""
        if func not in self._opened or is_packed(func, args):
            return False
        return any(id(t) in self._position for t in tree_leaves((args, kwargs)))

    @abstractmethod
    def _call(self, call: Call, named: dict[str, Any]) -> Tensor:
        """What to do instead of a call with these arguments."""

    def _refuse(self, positions: Sequence[int], why: str) -> None:
        """Of a call that is made as usual."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call as usual, or as the subclass says."""
        kwargs = kwargs or {}
        if self._opens(func, args, kwargs):
            with self:
                return self._opened[func](*args, **kwargs)
        if func not in self._table:
            return func(*args, **kwargs)
        kind, names = self._table[func]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        weight, bias = (self._position.get(id(named.get(k))) for k in ("weight", "bias"))
        positions = [i for i in (weight, bias) if i is not None]
        if not positions:
            return func(*args, **kwargs)
        z = kind.input_of(func, named) if torch.is_grad_enabled() else None
        if z is None:
            # a first pass of activation checkpointing, or a part that is held constant
            why = "an option of its layer is not supported"
            if not torch.is_grad_enabled():
                why = "it is used where gradients are switched off"
            self._refuse(positions, why)
            return func(*args, **kwargs)
        options = {k: v for k, v in named.items() if k not in (names[0], "weight", "bias")}
        shape = Size() if named.get("weight") is None else named["weight"].shape
        return self._call(
            kind(func, weight, bias, shape, z, z._version, Size(), options), named
        )


@final
class Duals(_LayerMode):
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

    def _call(self, call: Call, named: dict[str, Any]) -> Tensor:
        at = {"weight": call.weight, "bias": call.bias}
        if call.depends or call.weight is None:
            out: Tensor = call.function(**named)
            return out
        with torch.no_grad():
            c = None if call.bias is None else self.V[call.bias]
            da = call.jvp(self.V[call.weight], c)
        primals = {key: self.primals[i] for key, i in at.items() if i is not None}
        dual: Tensor = forward_ad.make_dual(call.function(**{**named, **primals}), da)
        return dual


@final
class Calls(_LayerMode):
    """Notes the calls, for the time of the context.

    A call is made with a leaf of its own in place of the parameter, so that its part of a
    derivative can be told from that of other uses.

    Attributes:
        calls: The calls so far.
        leaves: Leaves in place of parameters, by the positions of those.
        refused: Parameters of layers that are called in a way that is not noted, and why.

    Args:
        params: The parameters, as the model will be handed them.
        every: Whether norms and embeddings are layers, too, as are those inside of
            attention and recurrent ones; or only what multiplies matrices.
        on_gradient: Told the gradient of each output in a backward pass.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        every: bool = False,
        on_gradient: OnGradient | None = None,
    ) -> None:
        super().__init__(params, every=every)
        self.calls: list[Call] = []
        self.leaves: dict[int, Tensor] = {}
        self.refused: dict[int, str] = {}
        self._on_gradient = on_gradient

    def _call(self, call: Call, named: dict[str, Any]) -> Tensor:
        at = {"weight": call.weight, "bias": call.bias}
        leaves = {key: self._leaf(i) for key, i in at.items() if i is not None}
        a = detached_from_base(call.function(**{**named, **leaves}))
        index, on_gradient = len(self.calls), self._on_gradient
        self.calls.append(replace(call, shape=a.shape, edge=get_gradient_edge(a)))
        if on_gradient is not None:
            a.register_hook(lambda g: on_gradient(index, g.detach()))
        return a

    def _refuse(self, positions: Sequence[int], why: str) -> None:
        for i in positions:
            self.refused.setdefault(i, why)

    def _leaf(self, i: int) -> Tensor:
        if i not in self.leaves:
            self.leaves[i] = self.params[i].detach().requires_grad_()
        return self.leaves[i]

    def elsewhere(self, outputs: Sequence[Tensor]) -> set[int]:
        """Positions of the parameters that outputs depend on outside of noted calls."""
        found = (self._position.get(id(t)) for t in leaves_of(outputs))
        return {i for i in found if i is not None}

    def multiplications(self) -> int:
        """Those of a product forward and back for one datum, in these layers alone.

        Where ``z`` is data, neither its tangent nor its gradient is needed.
        """
        return sum((4 if c.depends else 2) * c.multiplications for c in self.calls)

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
            call.jvp(*(None if i is None else V[i] for i in (call.weight, call.bias)))
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
