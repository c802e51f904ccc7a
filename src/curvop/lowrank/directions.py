"""Newton steps, along eigenvectors or in the full space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class NewtonStep:
    """A step ``d``, and what the quadratic model ``gᵀd + ½ dᵀA d`` says of it.

    Attributes:
        step: ``d``, ``[P]``.
        slope: ``gᵀd``.
        curvature: ``dᵀA d``, without the damping.
        predicted_decrease: ``-(gᵀd + ½ dᵀA d)``: by how much the loss should fall. A trust
            region compares it with the true decrease.
    """

    step: Tensor  # [P]
    slope: float
    curvature: float
    predicted_decrease: float


@final
@dataclass(frozen=True)
class Directions:
    """First and second derivative of the loss along orthonormal directions.

    Attributes:
        values: Second derivatives ``eᵀA e``, ascending, ``[k]``.
        vectors: The directions ``e``, ``[P, k]``.
        slopes: First derivatives ``eᵀg``, ``[k]``.
    """

    values: Tensor  # [k]
    vectors: Tensor  # [P, k]
    slopes: Tensor  # [k]

    def newton_step(self, damping: float | Tensor) -> NewtonStep:
        r"""The damped Newton step in the span of the directions.

        .. math:: d = - \sum_k \frac{γ_k}{λ_k + δ_k} e_k

        Args:
            damping: ``δ``, positive; one number, or one for each direction ``[k]``.

        Raises:
            TypeError: If it is neither.
            ValueError: If it is not positive, or of another shape.
        """
        c = -self.slopes / (self.values + _damping(damping, self.values))
        return _told(
            self.vectors @ c, float(c @ self.slopes), float(c.square() @ self.values)
        )


def newton_step(V: Any, step: Tensor, gradient: Tensor) -> NewtonStep:
    """A step, with what the model of ``V Vᵀ`` says of it."""
    Vd: Tensor = V.T @ step
    return _told(step, float(gradient @ step), float(Vd @ Vd))


def _told(step: Tensor, slope: float, curvature: float) -> NewtonStep:
    return NewtonStep(step, slope, curvature, -(slope + curvature / 2))


def _damping(damping: Any, values: Tensor) -> Tensor:
    if not isinstance(damping, Tensor) or damping.ndim == 0:
        return torch.full_like(values, check_damping(damping))
    if damping.shape != values.shape:
        raise ValueError(
            f"Expected a damping for each of {len(values)} directions, got shape "
            f"{tuple(damping.shape)}."
        )
    if not bool((damping > 0).all()):
        raise ValueError("Expected a positive damping for each direction.")
    return damping.to(values)


def check_damping(value: Any) -> float:
    """A positive number.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not positive, or not finite.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"Expected damping as a number, got {type(value).__name__}.")
    damping = float(value)
    if not (math.isfinite(damping) and damping > 0):
        raise ValueError(
            f"Expected a positive damping, got {value}: V Vᵀ with fewer columns than rows "
            "is singular."
        )
    return damping
