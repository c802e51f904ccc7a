"""Products of an algorithm: counted, shown, and refused where they are not finite."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.operators import LinearOperator
from curvop.spectra.interrupts import Interrupts


class Products:
    """``A @ v``, counted.

    Args:
        A: The matrix.
        count: Products that were made before.
        interrupts: Held back but while a product is made.
        progressbar: Whether to show a bar.
        label: What the bar counts for.
    """

    def __init__(
        self,
        A: LinearOperator,
        count: int,
        interrupts: Interrupts,
        *,
        progressbar: bool,
        label: str,
    ) -> None:
        self.A = A
        self.count = count
        self._interrupts = interrupts
        self._bar = tqdm(
            desc=label, unit=" products", initial=count, disable=not progressbar
        )

    def __call__(self, V: Tensor) -> Tensor:
        """Multiply onto the rows of ``V``: ``[K, N] -> [K, N]``.

        Raises:
            ValueError: If the product is not finite.
        """
        K, V = len(V), V.to(self.A.dtype)
        with self._interrupts.allowed():
            AV: Tensor = (self.A @ V[0])[None] if K == 1 else (self.A @ V.T).T
        if not bool(torch.isfinite(torch.stack(torch.aminmax(AV))).all()):
            what = "NaN" if bool(torch.isnan(AV).any()) else "infinity"
            raise ValueError(
                f"Expected finite products, got {what} at product {self.count + 1}. "
                "Check the model and the data; a checkpoint holds the state before it."
            )
        self.count += K
        self._bar.update(K)
        return AV

    def show(self, **figures: object) -> None:
        """Write figures at the end of the bar."""
        if not self._bar.disable:
            self._bar.set_postfix(figures)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
