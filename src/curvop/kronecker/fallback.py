"""Exact diagonals for parameters without Kronecker factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvop.kronecker.factors import Fallback
from curvop.kronecker.fisher import Fisher


def exact_diagonals(
    model_func: Any,
    loss_func: Any,
    params: Any,
    data: Any,
    fisher: Fisher,
    common: Mapping[str, Any],
) -> Fallback:
    """A function of positions that finds the diagonals of those parameters.

    Of the same matrix: GGN, sampled Fisher or empirical Fisher; the identity where there is
    no backward pass.
    """
    tensors = fisher.parameters.tensors

    def find(positions: Sequence[int]) -> Sequence[Tensor]:
        from curvop.diagonals import EFDiagonalLinearOperator, GGNDiagonalLinearOperator

        kind = fisher.fisher_type
        if kind == "forward-only":
            return [torch.ones_like(tensors[i]) for i in positions]
        model, some = _restricted(model_func, params, positions)
        options: dict[str, Any] = {**common, "check_deterministic": False}
        if kind == "empirical":
            D = EFDiagonalLinearOperator(
                model, loss_func, some, data, per=fisher.per, **options
            )
            return list(D.blocks().values())
        if kind == "mc":
            options |= {"mc_samples": fisher.mc_samples, "seed": fisher.seed}
        return list(
            GGNDiagonalLinearOperator(model, loss_func, some, data, **options)
            .blocks()
            .values()
        )

    return find


def _restricted(
    model_func: Any, params: Any, positions: Sequence[int]
) -> tuple[Callable[..., Any], Any]:
    """The model as a function of some of its parameters."""
    if not isinstance(params, Mapping):
        return model_func, [params[i] for i in positions]
    names = list(params)
    some = {names[i]: params[names[i]] for i in positions}
    if isinstance(model_func, nn.Module):
        return model_func, some
    return lambda p, X: model_func({**params, **p}, X), some
