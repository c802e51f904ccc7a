"""Backward passes through the noted calls of layers, and what stands in their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from curvop.autograd import leaves_of
from curvop.layers import Call, Calls
from curvop.operators import probe

Receive = Callable[[int, Call, Tensor], None]  # position of a call, the call, gradient


@final
class Backward:
    """Backward passes through a noted forward pass: gradients are taken as they arrive.

    Attributes:
        noted: The function mode to run the forward pass in.
        calls: The calls with a batch axis, by their positions.
        refused: Parameters that are used in a way without Kronecker factors, and why.

    Args:
        params: The parameters, as the model will be handed them.
        N: Number of data in the batch.
    """

    def __init__(self, params: Sequence[Tensor], N: int) -> None:
        self.noted = Calls(params, every=True, on_gradient=self._arrive)
        self.calls: dict[int, Call] = {}
        self.refused: dict[int, str] = {}
        self._N = N
        self._entries: list[Any] = []
        self._receive: Receive | None = None

    def look_at(self, outputs: Sequence[Tensor]) -> bool:
        """Find the calls, and the parameters that the outputs depend on in other ways.

        Returns:
            Whether the outputs depend on any parameter.
        """
        noted = self.noted
        self.refused.update(noted.refused)
        for index, call in enumerate(noted.calls):
            if call.leading is not None and call.leading % max(self._N, 1) == 0:
                self.calls[index] = call
            else:
                self._refuse(call, "the input of its layer has no batch axis")
            if not call.depends:  # the graph starts there
                self._entries.append(call.edge)
        for i in noted.elsewhere(outputs):
            self.refused.setdefault(i, "it is used outside of supported layers")
        mine = {id(t) for t in (*noted.params, *noted.leaves.values())}
        return any(id(t) in mine for t in leaves_of(outputs))

    def refuse_dependent(self, outputs: Sequence[Tensor]) -> None:
        """Refuse layers in which other data move the prediction of the first datum."""
        N = self._N

        def first(o: Tensor, u: Tensor) -> Tensor:
            u = u.clone()
            u[len(o) // N :] = 0
            return u

        def receive(_: int, call: Call, g: Tensor) -> None:
            if bool((g.reshape(N, -1)[1:] != 0).any()):
                self._refuse(call, "its layer mixes data of a batch")

        if any(o.ndim == 0 or len(o) % N for o in outputs):
            return  # the factor of the loss will tell
        U = [first(o, u) for o, u in zip(outputs, probe(list(outputs)), strict=True)]
        self(outputs, U, receive, keep=True)

    def _refuse(self, call: Call, why: str) -> None:
        for i in call.positions:
            self.refused.setdefault(i, why)

    def __call__(
        self,
        outputs: Sequence[Tensor],
        S: Sequence[Tensor],
        receive: Receive,
        *,
        keep: bool,
    ) -> None:
        """One backward pass: ``receive`` is told the gradient of each call's output.

        Args:
            outputs: The prediction.
            S: What to pull back.
            receive: Called where a gradient arrives.
            keep: Whether the graph serves again.
        """
        pairs = [(o, s) for o, s in zip(outputs, S, strict=True) if o.requires_grad]
        params = [self.noted.params[i] for i in self.refused]  # it may start there, too
        inputs = [*self._entries, *(p for p in params if p.requires_grad)]
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

    def _arrive(self, index: int, g: Tensor) -> None:
        if self._receive is not None and index in self.calls:
            self._receive(index, self.calls[index], g)

    def forget_inputs(self) -> None:
        """Keep only what gradients need: a backward pass frees the rest on its way."""
        self.calls = {i: call.without_inputs() for i, call in self.calls.items()}
        self.noted.calls.clear()

    def release(self) -> None:
        """Let go of the graph, which holds the noted calls in turn."""
        self.noted.calls.clear()
        self.noted.leaves.clear()
        self.calls.clear()
        self._entries.clear()
