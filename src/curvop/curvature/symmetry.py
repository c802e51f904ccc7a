"""Symmetry checks: products with different columns and modes belong to one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from curvop.derivatives import WrongDerivativeError
from curvop.operators import Blocks, tolerance


def check_symmetric(V: Blocks, AV: Blocks) -> None:
    """Compare ``⟨u, A v⟩`` with ``⟨v, A u⟩`` for two columns ``u`` and ``v``.

    Args:
        V: Two columns, ``[2, *n_i]``.
        AV: Their products.

    Raises:
        WrongDerivativeError: If they differ by more than rounding.
    """
    (u, v), (Au, Av) = _columns(V), _columns(AV)
    rounding = tolerance(*(b.dtype for b in AV))
    scale = u.norm() * Av.norm() + v.norm() * Au.norm()
    # not finite compares as false: that is reported where the loss is checked
    if bool((u @ Av - v @ Au).abs() > rounding * scale):
        raise WrongDerivativeError(
            "its forward and reverse mode disagree: <u, Av> is not <v, Au>"
        )


def check_columns(one: Blocks, more: Blocks, rounding: float) -> None:
    """Compare the product of one column with the first of several at once.

    Several columns may be vectorised, and take other code.

    Args:
        one: The product, ``[1, *m_i]``.
        more: That of several columns, ``[K, *m_i]``.
        rounding: Relative difference that counts as rounding.

    Raises:
        WrongDerivativeError: If they differ.
    """
    (a,), b = _columns(one), _columns(more)
    if not float((a - b[0]).norm()) <= rounding * max(float(a.norm()), float(b.norm())):
        raise WrongDerivativeError("several columns at once give another product than one")


def check_adjoint(
    V: Blocks, JV: Blocks, JtJV: Blocks, rounding: float | None = None
) -> None:
    """Compare ``⟨v, Jᵀ J v⟩`` with ``‖J v‖²`` for each column ``v``.

    Args:
        V: Columns, ``[K, *n_i]``.
        JV: Their products with ``J``.
        JtJV: The products of those with ``Jᵀ``.
        rounding: Relative difference that counts as rounding, by default that of the type.

    Raises:
        WrongDerivativeError: If they differ by more than rounding.
    """
    v, u, w = (_columns(blocks) for blocks in (V, JV, JtJV))
    if rounding is None:
        rounding = tolerance(*(b.dtype for b in JtJV))
    scale = v.norm(dim=1) * w.norm(dim=1) + u.norm(dim=1) ** 2
    # not finite compares as false: that is reported where the rows are checked
    if bool((((v * w).sum(1) - u.square().sum(1)).abs() > rounding * scale).any()):
        raise WrongDerivativeError(
            "its forward and reverse mode disagree: <v, JᵀJv> is not ‖Jv‖²"
        )


def _columns(V: Blocks) -> Tensor:
    return torch.cat([b.reshape(len(b), -1).double() for b in V], 1)
