"""The layers of a forward pass whose gradients are known for each datum."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from curvop.diagonals.layer_sums import Entries, LayerSum, Table, Weight
from curvop.diagonals.pulling import Input
from curvop.layers import Call, Calls

# the parameters belong to the last axes of the output, or to the channels
_LAST = (F.layer_norm, F.rms_norm)
_CHANNELS = (F.group_norm, F.batch_norm)
_signature = functools.cache(inspect.signature)


@dataclass(frozen=True)
class Use:
    """One use of parameters by a norm or an embedding.

    Attributes:
        function: The function of ``torch.nn.functional``.
        weight: Position of the weight among the parameters, or ``None``.
        bias: Likewise.
        z: What the weight multiplies; the ids of an embedding.
        shape: Of the output.
        edge: Where the gradient of the output arrives.
        padding: The id that has no gradient.
    """

    function: Any
    weight: int | None
    bias: int | None
    z: Tensor
    shape: Size
    edge: GradientEdge
    padding: int | None = None


@final
class Uses(TorchFunctionMode):
    """Notes norms and embeddings, for the time of the context.

    As in :class:`Calls`, leaves take the place of the parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__()
        self.params = params
        self.uses: list[Use] = []
        self.leaves: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call as usual, and note what was called."""
        kwargs = kwargs or {}
        if func not in (*_LAST, *_CHANNELS, F.embedding):
            return func(*args, **kwargs)
        options = _signature(func).bind(*args, **kwargs).arguments
        is_coupled = options.get("training") or options.get("scale_grad_by_freq")
        places = {n: self._position(options.get(n)) for n in ("weight", "bias")}
        if is_coupled or options.get("max_norm") or set(places.values()) == {None}:
            return func(*args, **kwargs)
        z = options["input"]
        if func is not F.embedding:
            without = {n: None for n in places if n in options}
            with torch.no_grad():
                z = func(**{**options, **without})
        options |= {n: self._leaf(i) for n, i in places.items() if i is not None}
        out: Tensor = func(**options)
        if out.requires_grad:
            edge = get_gradient_edge(out)
            padding = options.get("padding_idx")
            weight, bias = places.values()
            self.uses.append(Use(func, weight, bias, z, out.shape, edge, padding))
        return out

    def _position(self, t: Tensor | None) -> int | None:
        return next((i for i, p in enumerate(self.params) if p is t), None)

    def _leaf(self, i: int) -> Tensor:
        if i not in self.leaves:
            self.leaves[i] = self.params[i].detach().requires_grad_()
        return self.leaves[i]


@dataclass(frozen=True)
class Noted:
    """The layers of one forward pass.

    Attributes:
        params: The parameters that the model was handed.
        calls: Linear layers and convolutions.
        uses: Norms and embeddings.
    """

    params: Sequence[Tensor]
    calls: list[Call] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)

    def layers(self) -> list[Call | Use]:
        """All of them."""
        return [*self.calls, *self.uses]

    def positions(self) -> set[int]:
        """Those of the parameters that belong to layers, among others."""
        found = {i for layer in self.layers() for i in (layer.weight, layer.bias)}
        return {i for i in found if i is not None}

    def input(self, e: int) -> Input:
        """Where the gradient of a layer's output arrives."""
        layer = self.layers()[e]
        assert layer.edge is not None
        return Input(layer.edge, layer.shape, self.params[0])

    def sums(self, N: int, R: int) -> dict[int, LayerSum]:
        """A sum for each parameter that belongs to layers with the data leading.

        Args:
            N: Number of data.
            R: Number of columns to come.
        """
        sums = {i: self._sum(i, p, N, R) for i, p in enumerate(self.params)}
        return {i: found for i, found in sums.items() if found is not None}

    def _sum(self, i: int, p: Tensor, N: int, R: int) -> LayerSum | None:
        mine = {e: c for e, c in enumerate(self.layers()) if i in (c.weight, c.bias)}
        if not mine or any(
            c.z.shape[:1] != (N,) or c.shape[:1] != (N,) for c in mine.values()
        ):
            return None
        edges, layers = list(mine), list(mine.values())
        weights = [c for c in layers if isinstance(c, Call) and c.weight == i]
        tables = [c for c in layers if isinstance(c, Use) and c.function is F.embedding]
        if len(weights) == len(layers):
            return Weight(p.shape, edges, weights, R) if _is_layer(p, weights) else None
        if len(tables) == len(layers):
            paddings = {c.padding for c in tables}
            ids = [c.z for c in tables]
            return Table(p.shape, edges, ids, *paddings) if len(paddings) == 1 else None
        if weights or tables:
            return None
        return Entries(p.shape, edges, [_entries(c, i, p) for c in layers])


def used(outputs: Sequence[Tensor], params: Sequence[Tensor]) -> set[int]:
    """Positions of the parameters that outputs depend on, outside of noted layers."""
    ends = [get_gradient_edge(p).node for p in params]  # alive, hence one object each
    nodes = [o.grad_fn for o in outputs if o.grad_fn is not None]
    seen: set[Any] = set(nodes)
    while nodes:
        following = {node for node, _ in nodes.pop().next_functions if node is not None}
        nodes += following - seen
        seen |= following
    return {i for i, end in enumerate(ends) if end in seen}


@contextmanager
def noted(params: Sequence[Tensor]) -> Iterator[Noted]:
    """Note the layers for the time of the context."""
    out = Noted(params)
    with Uses(params) as uses, Calls(params) as calls:
        yield out
    out.calls.extend(calls.calls)
    out.uses.extend(uses.uses)


def _is_layer(W: Tensor, calls: Sequence[Call]) -> bool:
    """Weights of matrices over data, or of convolutions over batches."""
    if calls[0].function is F.linear:
        return W.ndim == 2 and all(c.z.ndim > 1 for c in calls)
    return all(c.z.ndim == W.ndim for c in calls)


def _entries(layer: Call | Use, i: int, p: Tensor) -> tuple[int, Tensor | None]:
    """First axis of a layer's output that the parameter belongs to; what it multiplies."""
    is_last = layer.function in (F.linear, *_LAST)
    axis = len(layer.shape) - p.ndim if is_last else 1
    return axis, layer.z if layer.weight == i else None
