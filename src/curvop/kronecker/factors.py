"""The factors of all layers: computed, and put together for every parameter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvop.kronecker.blocks import Block, EigenBlock, KroneckerBlock, Members, eigh
from curvop.kronecker.ekfac import MatrixValues, TableValues
from curvop.kronecker.fisher import Fisher
from curvop.kronecker.kfac import MatrixSums, ScaleSums, TableSums, TiedSums
from curvop.kronecker.layer_sums import TIED, Key, Layers, LayerSums
from curvop.layers import Call, Embedding, MatrixCall
from curvop.operators import Space
from curvop.risk import UNUSED

Fallback = Callable[[Sequence[int]], Sequence[Tensor]]  # positions -> exact diagonals


@dataclass(frozen=True)
class Factors:
    """A block-diagonal matrix in the space of parameters.

    Attributes:
        space: The parameters.
        dtype: Type of vectors.
        device: Where everything is.
        blocks: The blocks on the diagonal; each parameter is in one.
    """

    space: Space
    dtype: torch.dtype
    device: torch.device
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Approximation:
    """What is approximated, and how.

    Attributes:
        fisher: Model, loss, data and columns.
        reduce: Whether KFAC-reduce, or KFAC-expand.
        joint: Whether weight and bias make one block.
        dtype: Type to sum in.
        unsupported: What to do with parameters without Kronecker factors.
        fallback: Finds the diagonals of those.
        check: Whether to look if the data is independent.
    """

    fisher: Fisher
    reduce: bool
    joint: bool
    dtype: torch.dtype
    unsupported: str
    fallback: Fallback
    check: bool

    def kfac(self) -> Factors:
        """``L ⊗ R`` for each layer."""
        parameters = self.fisher.parameters
        like = torch.empty(0, dtype=self.dtype, device=parameters.device)
        forward_only = self.fisher.fisher_type == "forward-only"

        def make(key: Key, calls: Sequence[Call]) -> LayerSums[Any]:
            weight, bias, form = key
            first = parameters.tensors[cast(int, bias if weight is None else weight)]
            matrix = next((c for c in calls if isinstance(c, MatrixCall)), None)
            table = next((c for c in calls if isinstance(c, Embedding)), None)
            sums: list[Any] = []
            if matrix is not None:
                sums.append(
                    MatrixSums(
                        weight,
                        bias,
                        matrix,
                        num_outputs=first.numel(),
                        reduce=self.reduce,
                        joint=self.joint,
                        forward_only=forward_only,
                        like=like,
                    )
                )
            if table is not None:
                sums.append(TableSums(table, forward_only=forward_only, like=like))
            if form == TIED:
                return TiedSums(*sums)
            if sums:
                return cast(LayerSums[Any], sums[0])
            return ScaleSums(
                weight, bias, first.shape, forward_only=forward_only, like=like
            )

        layers = Layers(make, keeps_inputs=False)
        Z, refused = self.fisher.sum_over_data(layers, "KFAC", check=self.check)
        return self._complete(_blocks(layers, Z.to(self.dtype)), refused)

    def ekfac(self, kfac: Factors) -> Factors:
        """The eigenbasis of KFAC, with the eigenvalues that fit best."""
        bases = {block.members.positions[0]: block for block in eigh(kfac.blocks)}

        def make(key: Key, calls: Sequence[Call]) -> LayerSums[Any] | None:
            weight, bias = (
                b if b is not None and _is_kronecker(b, calls[0]) else None
                for b in (bases.get(-1 if i is None else i) for i in key[:2])
            )
            if key[2] in ("matrix", TIED) and (weight or bias):
                return MatrixValues(weight, bias)
            if key[2] == "table" and weight:
                return TableValues(weight)
            return None  # an exact block, or a diagonal

        layers = Layers(make, keeps_inputs=True)
        Z, _ = self.fisher.sum_over_data(layers, "EKFAC", check=False)
        better = {b.members.positions[0]: b for b in _blocks(layers, Z.to(self.dtype))}
        blocks = tuple({**bases, **better}[i] for i in bases)
        return Factors(kfac.space, kfac.dtype, kfac.device, blocks)

    def _complete(self, blocks: list[Block], refused: dict[int, str]) -> Factors:
        """With a block for every parameter.

        Raises:
            ValueError: If a closure does not use the tensors that it was given with.
        """
        parameters = self.fisher.parameters
        uses = [i for block in blocks for i in block.members.positions]
        for i in {i for i in uses if uses.count(i) > 1}:
            refused.setdefault(i, "it is used by layers of different kinds")
        blocks = [b for b in blocks if not refused.keys() & set(b.members.positions)]
        covered = {i for block in blocks for i in block.members.positions}
        others = [
            i
            for i in range(len(parameters.tensors))
            if i not in covered and (i in refused or i in uses)
        ]
        if not parameters.functional and not covered and not others:
            raise ValueError(UNUSED)
        diagonals = dict(zip(others, self._diagonals(others, refused), strict=True))
        for i, p in enumerate(parameters.tensors):
            if i not in covered:
                d = diagonals.get(i, torch.zeros_like(p)).to(self.dtype)
                members = Members((i,), (p.shape,), 1, p.numel())
                blocks.append(KroneckerBlock(members, d.reshape(1, -1).detach(), None))
        blocks.sort(key=lambda block: block.members.positions[0])
        return Factors(parameters.space, parameters.dtype, parameters.device, tuple(blocks))

    def _diagonals(self, others: list[int], refused: dict[int, str]) -> Sequence[Tensor]:
        """The diagonals of parameters without factors.

        Raises:
            ValueError: If that is what the user asked for.
        """
        if not others:
            return []
        names = self.fisher.parameters.names or [str(i) for i in range(max(others) + 1)]
        why = [f"{names[i]} ({refused[i]})" for i in others if i in refused]
        message = f"No Kronecker factors for {'; '.join(why)}."
        if self.unsupported == "error":
            raise ValueError(
                f"{message} Leave them out of the parameters, or pass "
                "unsupported='diagonal'."
            )
        warnings.warn(f"{message} They get the exact diagonal.", stacklevel=6)
        return self.fallback(others)


def _is_kronecker(block: EigenBlock, call: Call) -> bool:
    return call.form != "scale" and (block.left is not None or block.right is not None)


def _blocks(layers: Layers, Z: Tensor) -> list[Block]:
    return [b for s in layers.sums.values() if s is not None for b in s.blocks(Z)]


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
