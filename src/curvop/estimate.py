"""A number that was estimated, with its error bar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """An estimate with its standard error.

    Attributes:
        value: The estimate.
        standard_error: Standard deviation of ``value`` over repetitions of the
            estimation, itself estimated from the samples; ``nan`` from one sample.
        num_matvecs: Number of products with the matrix that it took.

    >>> float(Estimate(2.0, 0.1, 10))
    2.0
    """

    value: float
    standard_error: float
    num_matvecs: int

    def __float__(self) -> float:
        """The value."""
        return self.value

    def __str__(self) -> str:
        """Value and error, as in ``2.00 ± 0.10``."""
        return f"{self.value:.4g} ± {self.standard_error:.2g}"
