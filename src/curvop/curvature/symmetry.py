"""The symmetry check: forward and reverse mode must belong to one function."""

from __future__ import annotations

import torch
from torch import Tensor

from curvop.curvature.probing import tolerance
from curvop.operators.layout import Blocks


def check_symmetric(V: Blocks, AV: Blocks) -> None:
    """Compare ``⟨u, A v⟩`` with ``⟨v, A u⟩`` for two columns ``u`` and ``v``.

    Args:
        V: Two columns, ``[2, *n_i]``.
        AV: Their products.

    Raises:
        RuntimeError: If they differ by more than rounding.
    """
    (u, v), (Au, Av) = _columns(V), _columns(AV)
    rounding = tolerance(*(b.dtype for b in AV))
    scale = u.norm() * Av.norm() + v.norm() * Au.norm()
    # what is not finite compares as false: it is told of where the loss is looked at
    if bool((u @ Av - v @ Au).abs() > rounding * scale):
        raise RuntimeError("its forward and reverse mode disagree: <u, Av> is not <v, Au>")


def check_adjoint(V: Blocks, JV: Blocks, JtJV: Blocks) -> None:
    """Compare ``⟨v, Jᵀ J v⟩`` with ``‖J v‖²`` for each column ``v``.

    Args:
        V: Columns, ``[K, *n_i]``.
        JV: Their products with ``J``.
        JtJV: The products of those with ``Jᵀ``.

    Raises:
        RuntimeError: If they differ by more than rounding.
    """
    v, u, w = (_columns(blocks) for blocks in (V, JV, JtJV))
    rounding = tolerance(*(b.dtype for b in JtJV))
    scale = v.norm(dim=1) * w.norm(dim=1) + u.norm(dim=1) ** 2
    # what is not finite compares as false: it is told of by whoever looks at the rows
    if bool((((v * w).sum(1) - u.square().sum(1)).abs() > rounding * scale).any()):
        raise RuntimeError("its forward and reverse mode disagree: <v, JᵀJv> is not ‖Jv‖²")


def _columns(V: Blocks) -> Tensor:
    return torch.cat([b.reshape(len(b), -1).double() for b in V], 1)
