"""Sketches: an orthonormal basis of ``A Ω``, extended, or with one column left out."""

from __future__ import annotations

import torch
from torch import Tensor

from curvop.scaling import unit


def extended(Q: Tensor, Y: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions that ``Y`` adds to ``Q``.

    They are those of ``Y + δ Ω``, with ``δ`` at rounding level: if ``Y`` is dependent on
    ``Q``, they are still orthonormal, and without bias, since column ``i`` depends on the
    probe ``i`` only.

    Args:
        Q: Orthonormal columns ``[N, k]``.
        Y: New columns of the sketch ``[N, c]``.
        G: Their probes ``Ω``, ``[N, c]``.

    Returns:
        The directions ``P``, ``[N, c]``, and the coefficients ``R``, ``[k + c, c]``:
        ``[Q, P] R = Y + δ Ω``.
    """
    eps = torch.finfo(Y.dtype).eps
    size = torch.where((Y != 0).any(), unit(Y), 1.0)
    Y = Y / size
    P = Y + G * (eps * (Y.norm() / G.norm()).clamp(min=eps))
    C, R = Q.new_zeros(Q.shape[1], Y.shape[1]), torch.eye(Y.shape[1]).to(Q)
    # twice is enough for independent columns; a third time for dependent ones
    for _ in range(3):
        D = Q.mT @ P
        P, S = torch.linalg.qr(P - Q @ D)
        C, R = C + D @ R, S @ R
    return P, torch.cat([C, R]) * size


def left_out(R: Tensor) -> Tensor:
    """The direction that column ``i`` adds to the span of the others, for each ``i``.

    The basis without column ``i`` of ``Y = Q R`` is ``Q (I - sᵢ sᵢᵀ) Qᵀ``, where ``sᵢ`` is
    column ``i`` of ``R⁻ᵀ``, normalised (Epperly, Tropp, Webber, 2024, section 2.4).

    Args:
        R: Coefficients ``[k, k]``, upper triangular.

    Returns:
        The directions ``[k, k]``, one in each column.
    """
    eye = torch.eye(len(R), dtype=R.dtype, device=R.device)
    # scaling column i scales direction i
    S = torch.linalg.solve_triangular((R / unit(R, 0)).mT, eye, upper=False)
    directions: Tensor = S / S.norm(dim=0)
    return directions
