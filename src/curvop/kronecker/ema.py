"""Moving averages of factors, for training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from curvop.kronecker.blocks import Block, KroneckerBlock
from curvop.kronecker.operator import KFACLinearOperator


@final
@dataclass(frozen=True)
class EMA:
    r"""An exponential moving average of the factors of KFAC.

    .. math:: A_k = ρ A_{k-1} + (1 - ρ) \hat A_k, \qquad
        ρ = \min(1 - 1/k, \text{decay})

    and the same for ``B``, so that the first averages are plain means (Martens, Grosse,
    2015, section 5). A value: :meth:`update` returns the next one.

    Attributes:
        decay: Largest weight of what has been.
        num_updates: ``k``.
        operator: The average, once there is one.

    Raises:
        ValueError: If the decay is not in ``[0, 1)``.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> ema = EMA(decay=0.5)
    >>> for x in (1.0, 3.0):
    ...     data = [(torch.tensor([[x]]), torch.tensor([[0.0]]))]
    ...     K = KFACLinearOperator(model, torch.nn.MSELoss(), model.parameters(), data)
    ...     ema = ema.update(K)
    >>> (ema.operator @ torch.tensor([1.0])).round()  # B A = 2 · (1 + 9) / 2
    tensor([10.])
    """

    decay: float = 0.95
    num_updates: int = 0
    operator: KFACLinearOperator | None = None

    def __post_init__(self) -> None:
        """Refuse a decay that forgets nothing, or has no meaning."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"Expected a decay in [0, 1), got {self.decay}.")

    def update(self, K: KFACLinearOperator) -> EMA:
        """The average with one more.

        Raises:
            TypeError: If ``K`` is not KFAC: eigenvalues in different bases have no mean.
            ValueError: If ``K`` has other blocks than the average so far.
        """
        if not isinstance(K, KFACLinearOperator):
            raise TypeError(f"Expected a KFACLinearOperator, got {type(K).__name__}.")
        k = self.num_updates + 1
        if self.operator is None:
            return replace(self, num_updates=k, operator=K)
        rho = min(1 - 1 / k, self.decay)
        old, new = self.operator.factors, K.factors
        if old.space != new.space or not all(
            _alike(a, b) for a, b in zip(old.blocks, new.blocks, strict=True)
        ):
            raise ValueError(
                "Expected KFAC of the same parameters with the same options as before, got "
                f"blocks {K.block_names} after {self.operator.block_names}."
            )
        blocks = tuple(
            _average(a, b, rho) for a, b in zip(old.blocks, new.blocks, strict=True)
        )
        return replace(
            self,
            num_updates=k,
            operator=KFACLinearOperator.from_factors(replace(new, blocks=blocks)),
        )


def _alike(a: Block, b: Block) -> bool:
    if not (isinstance(a, KroneckerBlock) and isinstance(b, KroneckerBlock)):
        return False
    shapes = [
        [None if F is None else F.shape for F in (block.left, block.right)]
        for block in (a, b)
    ]
    return a.members == b.members and shapes[0] == shapes[1]


def _average(a: Block, b: Block, rho: float) -> Block:
    assert isinstance(a, KroneckerBlock)
    assert isinstance(b, KroneckerBlock)
    return KroneckerBlock(
        b.members, _mean(a.left, b.left, rho), _mean(a.right, b.right, rho)
    )


def _mean(old: Tensor | None, new: Tensor | None, rho: float) -> Tensor | None:
    if old is None or new is None:
        return None
    return rho * old + (1 - rho) * new.to(old)
