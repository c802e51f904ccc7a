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


def _columns(V: Blocks) -> Tensor:
    return torch.cat([b.reshape(len(b), -1).double() for b in V], 1)
