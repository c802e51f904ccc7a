"""The calls of layers in a forward pass, seen without touching the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from curvop.autograd import leaves_of
from curvop.kronecker.calls import (
    LayerCall,
    MatrixCall,
    ScaleCall,
    TableCall,
    by_feature,
)
from curvop.layers import detached_from_base

Receive = Callable[[LayerCall, Tensor], None]

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: _CONVOLUTION[:3],
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv3d: _CONVOLUTION,
    F.embedding: (
        "input",
        "weight",
        "padding_idx",
        "max_norm",
        "norm_type",
        "scale_grad_by_freq",
        "sparse",
    ),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.batch_norm: (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    ),
    F.instance_norm: (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "use_input_stats",
        "momentum",
        "eps",
    ),
}
_NORMS = (F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm, F.instance_norm)

# The same code, but without the question whether a mode wants to see the whole of it: the
# linear layers inside are what is to be seen.
_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


@final
class Capture(TorchFunctionMode):
    """Notes the calls of layers whose parameters are given, for the time of the context.

    A layer is called with leaves of its own in place of the parameters: whatever else uses
    a parameter can be told in the graph.

    Attributes:
        calls: The calls so far.
        refused: Parameters that are used in a way without Kronecker factors, and why.

    Args:
        params: The parameters, as the model will be handed them.
        num_data: Number of data in the batch.
    """

    def __init__(self, params: Sequence[Tensor], num_data: int) -> None:
        super().__init__()
        self.calls: list[LayerCall] = []
        self.refused: dict[int, str] = {}
        self._params = params
        self._N = num_data
        self._position = {id(p): i for i, p in enumerate(params)}
        self._leaves: dict[int, Tensor] = {}
        self._entries: list[GradientEdge] = []
        self._receive: Receive | None = None
        self._data_last = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call as usual, and note it."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._attend(args, kwargs)
        names = _ARGUMENTS.get(func)
        if names is None:
            return func(*args, **kwargs)
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        weight, bias = (self._find(named.get(key)) for key in ("weight", "bias"))
        if weight is None and bias is None:
            return func(*args, **kwargs)
        return self._call(func, named, weight, bias)

    def _attend(self, args: Any, kwargs: Any) -> Any:
        """Attention with its linear layers in sight: it works on ``[T, N, E]``."""
        self._data_last = True
        try:
            with self:
                return _attention(*args, **kwargs)
        finally:
            self._data_last = False

    def _find(self, t: Any) -> int | None:
        return self._position.get(id(t))

    def _call(
        self, func: Any, named: dict[str, Any], weight: int | None, bias: int | None
    ) -> Tensor:
        mine = {"weight": weight, "bias": bias}
        found = {key: i for key, i in mine.items() if i is not None}
        call = None
        if not torch.is_grad_enabled():
            # a first pass of activation checkpointing, or a part that is held constant
            self._refuse(found, "it is used where gradients are switched off")
        elif not self._has_batch_axis(func, named["input"]):
            self._refuse(found, "the input of its layer has no batch axis")
        else:
            at = {
                "weight": weight,
                "bias": bias,
                "num_data": self._N,
                "size": named["input"].numel(),
                "index": len(self.calls),
            }
            call = _note(func, named, at, data_last=self._data_last)
            if call is None:
                self._refuse(found, "an option of its layer is not supported")
        if call is None:
            out: Tensor = func(**named)
            return out
        is_entry = not named["input"].requires_grad
        leaves = {key: self._leaf(i) for key, i in found.items()}
        a = detached_from_base(func(**{**named, **leaves}))
        if is_entry:
            self._entries.append(get_gradient_edge(a))
        index = call.index
        a.register_hook(lambda g: self._arrive(index, g))
        self.calls.append(call)
        return a

    def _has_batch_axis(self, func: Any, z: Tensor) -> bool:
        """Whether each datum has rows of its own, as far as the shape tells."""
        rows = z.shape[:-1].numel() if self._data_last else z.shape[0] if z.ndim else 0
        return z.ndim >= 1 + (func is not F.embedding) and rows % max(self._N, 1) == 0

    def _leaf(self, i: int) -> Tensor:
        if i not in self._leaves:
            self._leaves[i] = self._params[i].detach().requires_grad_()
        return self._leaves[i]

    def _refuse(self, found: dict[str, int], why: str) -> None:
        for i in found.values():
            self.refused.setdefault(i, why)

    def _arrive(self, index: int, g: Tensor) -> None:
        if self._receive is not None:
            self._receive(self.calls[index], g.detach())

    def look_at(self, outputs: Sequence[Tensor]) -> bool:
        """Refuse the parameters that the outputs depend on in other ways.

        Returns:
            Whether the outputs depend on any parameter.
        """
        leaves = {id(t) for t in leaves_of(outputs)}
        for p, i in self._position.items():
            if p in leaves:
                self.refused.setdefault(i, "it is used outside of supported layers")
        mine = {*self._position, *(id(t) for t in self._leaves.values())}
        return not mine.isdisjoint(leaves)

    def pull(
        self,
        outputs: Sequence[Tensor],
        S: Sequence[Tensor],
        receive: Receive,
        *,
        keep: bool,
    ) -> None:
        """One backward pass: ``receive`` is told the slopes of each call.

        Args:
            outputs: The prediction.
            S: What to pull back.
            receive: Called where the gradient with respect to a layer's output arrives.
            keep: Whether the graph serves again.
        """
        pairs = [(o, s) for o, s in zip(outputs, S, strict=True) if o.requires_grad]
        inputs: list[Any] = [
            *self._entries,
            *(self._params[i] for i in self._refused_leaves()),
        ]
        if not pairs or not inputs:
            return
        self._receive = receive
        try:
            torch.autograd.grad(
                [o for o, _ in pairs],
                inputs,
                [s for _, s in pairs],
                retain_graph=keep,
                allow_unused=True,
            )
        finally:
            self._receive = None

    def forget_inputs(self) -> None:
        """Keep only what slopes need: a backward pass frees the rest on its way."""
        self.calls = [call.without_inputs() for call in self.calls]

    def size(self) -> int:
        """Numbers that go into layers."""
        return sum(call.size for call in self.calls)

    def _refused_leaves(self) -> list[int]:
        """Leaves of the graph other than those of noted layers: it may start there."""
        return [i for i in self.refused if self._params[i].requires_grad]

    def release(self) -> None:
        """Let go of the graph, which holds the capture in turn."""
        self.calls.clear()
        self._entries.clear()
        self._leaves.clear()


def _note(
    func: Any, named: dict[str, Any], at: dict[str, Any], *, data_last: bool
) -> LayerCall | None:
    """The call, or ``None`` where it has no form here."""
    z = named["input"].detach()
    N = at["num_data"]
    if func is F.embedding:
        if named.get("max_norm") is not None or named.get("scale_grad_by_freq"):
            return None
        shape, padding = named["weight"].shape, named.get("padding_idx")
        padding = None if padding is None else padding % shape[0]
        return TableCall(**at, tokens=z.reshape(N, -1), shape=shape, padding=padding)
    if func in _NORMS:
        is_channel = "normalized_shape" not in named
        axis = 1 if is_channel else -len(named["normalized_shape"])
        x = None
        if at["weight"] is not None:
            plain = {**named, "input": z, "weight": None}
            plain |= {"bias": None} if "bias" in named else {}
            with torch.no_grad():
                x = by_feature(func(**plain), N, axis, is_channel)
        return ScaleCall(**at, x=x, axis=axis, is_channel=is_channel)
    matrix = {**at, "z": z, "version": z._version, "shape": named["weight"].shape}
    if func is F.linear:
        return MatrixCall(**matrix, options=None, data_last=data_last)
    if z.ndim != named["weight"].ndim:
        return None  # one datum without a batch axis
    options = {k: v for k, v in named.items() if k not in ("input", "weight", "bias")}
    return MatrixCall(**matrix, options=options)
