"""Random numbers of a datum: a function of its content, not of its batch.

A generator would tie a sample to the position in the data; a shuffled loader, or other
mini-batches, would then give another matrix. Here each datum's bits are hashed, and the
numbers come from a counter-based generator (SplitMix64; Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", 2014) that starts at the hash. Equal data get
equal numbers. The global generators are not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvop.risk import nested

_GOLDEN = 0x9E3779B97F4A7C15


def fingerprints(data: Any, N: int) -> Tensor:
    """A hash of each of ``N`` data, ``[N]``.

    Args:
        data: Tensors in any nesting; those with leading axis ``N`` have a row for each
            datum, others count for all data.
        N: Number of data.
    """
    total: Tensor | None = None
    for i, t in enumerate(nested.tensors(data)):
        rows = t.reshape(N, -1) if t.shape[:1] == (N,) else t.reshape(1, -1)
        bits = _bits(rows)
        places = torch.arange(bits.shape[1], device=t.device) + _signed(i << 40)
        weights = _mixed(places) | 1  # odd: no bit of the data is lost
        hashed = _mixed((bits * weights).sum(1) + i)
        total = hashed if total is None else total + hashed
    assert total is not None
    return _mixed(total).expand(N)


def uniform(at: Tensor, seed: int, sample: int, count: int) -> Tensor:
    """Numbers in ``(0, 1)`` for each datum, ``[N, count]``, in double precision.

    Args:
        at: The fingerprints, ``[N]``.
        seed: Another seed gives other numbers.
        sample: Index of the sample; another one gives other numbers.
        count: Numbers for each datum.
    """
    start = at
    for key in (seed, sample):
        start = _mixed(start + _mixed(torch.full_like(at, key) + 1))
    steps = torch.arange(1, count + 1, device=at.device) * _signed(_GOLDEN)
    bits = _mixed(start[:, None] + steps)
    return (_shifted(bits, 11).double() + 0.5) * 2.0**-53


def _bits(t: Tensor) -> Tensor:
    """The bits as integers; in single precision, so that wider types make no difference."""
    if t.is_complex():
        t = torch.view_as_real(t).flatten(1)
    if t.is_floating_point():
        t = t.float().contiguous().view(torch.int32)
    return t.long()


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in arithmetic modulo ``2**64``."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, n: int) -> Tensor:
    """To the right by ``n`` bits, zeros moving in."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _signed(n: int) -> int:
    """The integer modulo ``2**64`` as torch stores it."""
    n &= (1 << 64) - 1
    return n - (1 << 64) if n >= 1 << 63 else n
