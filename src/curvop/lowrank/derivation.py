"""Columns of ``V = Jᵀ S`` for one batch, from ``S`` and the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from curvop.layers import Calls
from curvop.lowrank.data import parts_by_passes, parts_by_vmap
from curvop.lowrank.layers import parts_of_layers
from curvop.lowrank.parts import Part
from curvop.lowrank.piece import Piece
from curvop.operators import Blocks
from curvop.risk import Parameters, nested


@dataclass(frozen=True)
class Batch:
    """What the columns of one batch are computed from.

    Attributes:
        at: The parameters, and the model.
        X: Inputs.
        S: Columns over the outputs of the model, ``[R, *m_i]``, data leading in ``m_i``.
        N: Number of data.
    """

    at: Parameters
    X: Any
    S: Blocks
    N: int

    @property
    def R(self) -> int:
        """Columns of each datum."""
        return self.S[0].shape[0]

    @property
    def is_sliceable(self) -> bool:
        """Whether some of the data can be taken without the others."""
        return all(t.shape[:1] == (self.N,) for t in nested.tensors(self.X))

    def some(self, data: range) -> Batch:
        """Some of the data.

        Raises:
            ValueError: If they cannot be told apart.
        """
        if len(data) == self.N:
            return self
        if not self.is_sliceable:
            raise ValueError("the inputs do not have the data leading")
        X = nested.map_tensors(lambda t: t[data.start : data.stop], self.X)
        rows = [s.shape[1] // self.N for s in self.S]
        S = [
            s[:, data.start * q : data.stop * q] for s, q in zip(self.S, rows, strict=True)
        ]
        return Batch(self.at, X, S, len(data))


Way = Callable[[Batch, range], Piece]


def by_layers(batch: Batch, data: range) -> Piece:
    """Linear layers by their factors, what remains by vmap over the data."""
    batch = batch.some(data)
    parts, rest = _of_layers(batch)
    if rest:
        parts |= parts_by_vmap(batch.at, batch.X, batch.S, batch.N, rest)
    return _piece(batch, parts, batch.N)


def by_layers_and_passes(batch: Batch, data: range) -> Piece:
    """Linear layers by their factors, what remains by passes."""
    batch = batch.some(data)
    parts, rest = _of_layers(batch)
    if rest:
        everything = range(batch.N)
        parts |= parts_by_passes(batch.at, batch.X, batch.S, batch.N, rest, everything)
    return _piece(batch, parts, batch.N)


def by_passes(batch: Batch, data: range) -> Piece:
    """All parameters by passes: the only way that is right where data are coupled."""
    every = range(len(batch.at.tensors))
    parts = parts_by_passes(batch.at, batch.X, batch.S, batch.N, every, data)
    return _piece(batch, parts, len(data))


def ways(at: Parameters) -> tuple[Way, ...]:
    """What to try, the cheapest first."""
    if at.functional:
        return (by_layers, by_layers_and_passes, by_passes)
    return (by_layers_and_passes, by_passes)


def _of_layers(batch: Batch) -> tuple[dict[int, Part], list[int]]:
    """Parts of the parameters of linear layers, and positions of others that are used."""
    with torch.enable_grad(), batch.at.leaves() as params:
        with Calls(params, every=True) as noted:
            found = nested.differentiable(batch.at.model(params, batch.X))
        outputs = [o for o in found if o.requires_grad]
        S = [s for s, o in zip(batch.S, found, strict=True) if o.requires_grad]
        if not outputs:
            return {}, []
        return parts_of_layers(noted, outputs, S, batch.N)


def _piece(batch: Batch, parts: dict[int, Part], N: int) -> Piece:
    return Piece(tuple(parts.get(i) for i in range(len(batch.at.tensors))), N, batch.R)
