"""The diagonal of GGN and empirical Fisher: squared gradients of each datum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from curvop.curvature import CurvatureLinearOperator
from curvop.derivatives import Aux, chunks
from curvop.diagonals.layer_sums import layer_sums
from curvop.diagonals.output_columns import (
    OutputColumns,
    columns_at_once,
    output_columns,
)
from curvop.diagonals.per_datum import one_by_one, rows_of_batch, vectorised
from curvop.diagonals.vjp import Input, vjp_columns
from curvop.diagonals.ways import UnitVectors, Way, WrongDiagonalError
from curvop.layers import Calls
from curvop.linearized import as_outputs
from curvop.operators import Blocks
from curvop.risk import nested

Rest = Callable[[CurvatureLinearOperator, Sequence[int], Any, OutputColumns], Blocks]


@dataclass(frozen=True)
class SquaredGradients:
    """``Σ_n Σ_r σ (J_nᵀ s_{n,r})²``.

    One backward pass for each column ``r``, of all data at once, gives the gradients of the
    layers' outputs, from which those of the parameters follow for each datum. Parameters
    that belong to none of these layers are differentiated for each datum.

    Attributes:
        form: What to call it.
        rest: The sum for given parameters, of any kind.
        in_layers: Parameters that may be told from layers; ``None`` before it is known.
    """

    form: str
    rest: Rest
    in_layers: frozenset[int] | None = frozenset()

    def for_model(self, A: CurvatureLinearOperator, X: Any, y: Any) -> SquaredGradients:
        """Find the parameters of layers, on a few data.

        Of few data: in a whole batch another axis may be as long as that of the data.

        Raises:
            WrongDiagonalError: If there are none.
        """
        if self.in_layers is not None:
            return self
        with torch.enable_grad(), A.risk.parameters.leaves() as params:
            with Calls(params, every=True) as noted:
                A.risk.predict(params, X)
            found = frozenset(layer_sums(noted, A.risk.data.batch_size(X, y), 1))
        if not found:
            raise WrongDiagonalError("there are no layers")
        return replace(self, in_layers=found)

    def __call__(self, A: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Blocks, Aux]:
        """The diagonal for one batch's summed loss."""
        everything = range(len(A.risk.parameters.tensors))
        found, tally = self.of(A, X, y, everything)
        return [found[i] for i in everything], tally

    def of(
        self, A: CurvatureLinearOperator, X: Any, y: Any, some: Collection[int]
    ) -> tuple[dict[int, Tensor], Aux]:
        """The diagonal for some parameters."""
        assert self.in_layers is not None
        S, found, tally = _by_layers(A, X, y, self.in_layers.intersection(some))
        found = {i: d for i, d in found.items() if i in some}
        rest = [i for i in some if i not in found]
        if rest:
            found |= zip(rest, self.rest(A, rest, X, S), strict=True)
        return found, tally


def _by_layers(
    A: CurvatureLinearOperator, X: Any, y: Any, in_layers: frozenset[int]
) -> tuple[OutputColumns, dict[int, Tensor], Aux]:
    """The columns, and the diagonal for parameters of layers and for unused ones."""
    with torch.enable_grad(), A.risk.parameters.leaves() as params:
        with Calls(params, every=True) as noted:
            prediction = A.risk.predict(params, X)
        S = output_columns(A, prediction, X, y)
        tally = A.risk.tally(nested.map_tensors(Tensor.detach, prediction), y)
        if not in_layers:
            return S, {}, tally
        outputs = nested.differentiable(prediction)
        elsewhere = noted.elsewhere(outputs)
        sums = {
            i: found
            for i, found in layer_sums(noted, S.N, S.count).items()
            if i in in_layers and i not in elsewhere
        }
        of_layers = {i for call in noted.calls for i in call.positions}
        unused = set(range(len(params))) - elsewhere - of_layers
        zeros = {i: torch.zeros_like(params[i], requires_grad=False) for i in unused}
        needed = sorted({e for found in sums.values() for e in found.edges})
        inputs = {e: Input.of(noted.calls[e], params[0]) for e in needed}
        for which in chunks(S.count, columns_at_once(A, X, S.count)):
            s, signs = S(which)
            u = as_outputs(s, outputs)
            deltas = vjp_columns(outputs, inputs, u)
            for found in sums.values():
                found.add(deltas, signs)
        return S, {i: found.total() for i, found in sums.items()} | zeros, tally


def ways_by_squared_gradients() -> tuple[Way, ...]:
    """From the quickest to the one that is right for every model."""
    return (
        SquaredGradients("layers", vectorised, None),
        SquaredGradients("data", vectorised),
        SquaredGradients("layers", one_by_one, None),
        SquaredGradients("data", one_by_one),
        SquaredGradients("rows", rows_of_batch),
        UnitVectors(),
    )
