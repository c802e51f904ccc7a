"""The diagonal by products with unit vectors: right for every model, the last resort."""

from __future__ import annotations

from typing import Any

import torch

from curvop.curvature import CurvatureLinearOperator
from curvop.derivatives import Aux
from curvop.diagonals.computation import entries
from curvop.diagonals.output_columns import columns_at_once
from curvop.operators import Blocks


class ByColumns:
    """``e_iᵀ A e_i`` for every ``i``: as many products as parameters."""

    form = "columns"

    def for_model(self, A: CurvatureLinearOperator, X: Any, y: Any) -> ByColumns:
        """Any model."""
        return self

    def __call__(self, A: CurvatureLinearOperator, X: Any, y: Any) -> tuple[Blocks, Aux]:
        """The diagonal for one batch's summed loss."""
        P = A.shape[0]
        k = columns_at_once(A, X, P)
        d, tally = entries(A, X, y, torch.arange(P), k)
        parts = d.split([p.numel() for p in A.risk.parameters.tensors])
        tensors = A.risk.parameters.tensors
        return [d.reshape(p.shape) for d, p in zip(parts, tensors, strict=True)], tally
