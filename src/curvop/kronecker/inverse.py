"""``(K + damping)⁻¹`` of a block-diagonal of Kronecker products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, final

import torch
from torch import Tensor

from curvop.derivatives import leading, trailing
from curvop.kronecker.blocks import Block, EigenBlock, KroneckerBlock, eigh, multiply
from curvop.kronecker.factors import Factors
from curvop.operators import Blocks, LinearOperator, SingularSystemError

Damping = float | Mapping[str, float] | Sequence[float]
Method = Literal["exact", "heuristic"]


@final
class KroneckerInverseLinearOperator(LinearOperator):
    """``(K + damping)⁻¹``, made by ``inverse`` of (E)KFAC; serves as preconditioner ``M=``.

    >>> import torch
    >>> from curvop import KFACLinearOperator
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> data = [(torch.tensor([[2.0]]), torch.tensor([[0.0]]))]
    >>> K = KFACLinearOperator(model, torch.nn.MSELoss(), model.parameters(), data)
    >>> K.inverse(2.0) @ torch.tensor([1.0])  # 1 / (2 · 2² + 2)
    tensor([0.1000])
    """

    def __init__(self, factors: Factors, blocks: Sequence[Block]) -> None:
        super().__init__(
            factors.space,
            factors.space,
            dtype=factors.dtype,
            device=factors.device,
            psd=True,
        )
        self._blocks = tuple(block.map(lambda t: t.to(factors.dtype)) for block in blocks)

    def _matmat(self, M: Blocks) -> Blocks:
        return trailing(multiply(self._blocks, leading(M)))

    def _transpose(self) -> LinearOperator:
        return self


def inverted(
    factors: Factors, damping: Damping, method: Method
) -> KroneckerInverseLinearOperator:
    """The inverse; see :meth:`KFACLinearOperator.inverse`.

    Raises:
        TypeError: If the damping is of the wrong kind.
        ValueError: If it is negative or does not fit, or the method is unknown.
        SingularSystemError: If a damped block is singular.
    """
    if method not in ("exact", "heuristic"):
        raise ValueError(f"Expected method 'exact' or 'heuristic', got {method!r}.")
    dampings = per_block(factors, damping)
    given: Sequence[Block] = factors.blocks
    invert: Callable[[Any, float], Block | None] = heuristic_inverse
    if method == "exact":
        given, invert = eigh(given), exact_inverse
    blocks: list[Block] = []
    for block, d in zip(given, dampings, strict=True):
        inverse = invert(block, d)
        if inverse is None:
            raise singular(factors, block, d)
        blocks.append(inverse)
    return KroneckerInverseLinearOperator(factors, blocks)


def per_block(factors: Factors, damping: Damping) -> list[float]:
    """A damping for each block.

    Raises:
        TypeError: If it is of the wrong kind.
        ValueError: If it is negative, or there are too few or too many.
    """
    n = len(factors.blocks)
    if isinstance(damping, Mapping):
        names = factors.space.names
        if names is None:
            raise TypeError(
                "Expected damping as a number or a list, got a dict: the parameters have "
                "no names."
            )
        missing, foreign = set(names) - damping.keys(), damping.keys() - set(names)
        if missing or foreign:
            raise ValueError(
                f"Expected a damping for each of {list(names)}; missing: "
                f"{sorted(missing)}, not known: {sorted(foreign)}."
            )
        found: list[float] = []
        for block in factors.blocks:
            here = {float(damping[names[i]]) for i in block.members.positions}
            if len(here) > 1:
                mine = [names[i] for i in block.members.positions]
                raise ValueError(f"Expected the same damping for {mine}: they are a block.")
            found += here
    elif isinstance(damping, Sequence) and not isinstance(damping, str):
        found = [float(d) for d in damping]
        if len(found) != n:
            raise ValueError(
                f"Expected {n} dampings, one for each block, got {len(found)}. See "
                ".block_names."
            )
    elif isinstance(damping, Real) and not isinstance(damping, bool):
        found = [float(damping)] * n
    else:
        raise TypeError(
            "Expected damping as a number, a list with one for each block, or a dict by "
            f"parameter name, got {type(damping).__name__}."
        )
    if not all(0 <= d < float("inf") for d in found):
        raise ValueError(f"Expected a finite damping of at least 0, got {damping}.")
    return found


def exact_inverse(eigen: EigenBlock, damping: float) -> EigenBlock | None:
    """``(K + λ I)⁻¹`` in the eigenbasis; ``None`` if it is singular."""
    values = damped_values(eigen, damping)
    return None if values is None else replace(eigen, values=1 / values)


def damped_values(eigen: EigenBlock, damping: float) -> Tensor | None:
    """``λ + damping``; ``None`` if one is zero, or nothing but rounding."""
    values = eigen.values
    rounding = max(values.shape[1:]) * torch.finfo(values.dtype).eps * float(values.max())
    if float(values.min()) <= rounding and damping == 0:
        return None
    return values + damping


def heuristic_inverse(block: Block, damping: float) -> Block | None:
    """``(L + √λ/π I)⁻¹ ⊗ (R + π √λ I)⁻¹``; ``None`` if a factor is singular."""
    if isinstance(block, EigenBlock):
        return exact_inverse(block, damping)
    assert block.left is not None  # no layer has the identity there
    if block.right is None:  # nothing to share the damping with
        inverse = _inverse(block.left, block.left.new_full((len(block.left),), damping))
        return None if inverse is None else KroneckerBlock(block.members, inverse, None)
    left, right = (_mean_eigenvalue(F) for F in (block.left, block.right))
    pi = torch.where((left > 0) & (right > 0), (right / left).sqrt(), 1.0)
    root = damping**0.5
    inverse_left = _inverse(block.left, root / pi)
    inverse_right = _inverse(block.right, root * pi)
    if inverse_left is None or inverse_right is None:
        return None
    return KroneckerBlock(block.members, inverse_left, inverse_right)


def _mean_eigenvalue(factor: Tensor) -> Tensor:
    """``tr / n``, ``[G]``."""
    if factor.ndim == 2:
        return factor.mean(-1)
    return factor.diagonal(dim1=-2, dim2=-1).mean(-1)


def _inverse(factor: Tensor, damping: Tensor) -> Tensor | None:
    """``(F + damping I)⁻¹`` for each group; ``None`` if it is singular."""
    if factor.ndim == 2:
        damped = factor + damping[:, None]
        return 1 / damped if bool((damped > 0).all()) else None
    damped = factor.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    C, info = torch.linalg.cholesky_ex(damped)
    pivots = C.diagonal(dim1=-2, dim2=-1)
    rounding = (factor.shape[-1] * torch.finfo(C.dtype).eps) ** 0.5
    is_safe = (pivots.amin(-1) > rounding * pivots.amax(-1)) | (damping > 0)
    if bool(info.any()) or not bool(is_safe.all()):
        return None
    return torch.cholesky_inverse(C)


def singular(factors: Factors, block: Block, damping: float) -> SingularSystemError:
    """What to tell of a singular block."""
    names = factors.space.names
    which = [i if names is None else names[i] for i in block.members.positions]
    return SingularSystemError(
        f"The block of {', '.join(map(str, which))} is singular with damping {damping:g}. "
        "Expected a positive damping, for instance 1e-3 of the largest eigenvalue."
    )
