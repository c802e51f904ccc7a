"""Powers of two, and norms that do not over- or underflow."""

from __future__ import annotations

import math

import pytest
import torch

from curvop.scaling import norm, norms, unit

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_is_the_power_of_two_below_the_largest(dtype: torch.dtype) -> None:
    """For each exponent that the type has, to the last bit."""
    limits = torch.finfo(dtype)
    least, most = math.frexp(limits.tiny)[1] - 1, math.frexp(limits.max)[1] - 1
    for e in range(least, most + 1):
        for factor in (1.0, 1.25, 1.9375):
            V = torch.tensor([[math.ldexp(factor, e), 0.0, -limits.tiny]], dtype=dtype)
            assert unit(V, 1).item() == math.ldexp(1.0, e)
            assert unit(-V).item() == math.ldexp(1.0, e)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_nothing_can_be_divided_by_their_unit(dtype: torch.dtype) -> None:
    """And what is no number stays none."""
    zero = torch.zeros(2, 3, dtype=dtype)
    assert not (zero / unit(zero, 1)).any()
    assert norms(zero, 0).tolist() == [0.0, 0.0, 0.0]
    assert norms(zero[:, :0], 1).tolist() == [0.0, 0.0]
    assert norm(zero[:0]).item() == 0.0
    for value in (math.nan, math.inf, -math.inf):
        V = torch.tensor([1.0, value]).to(dtype)
        assert not norm(V).isfinite()


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [(torch.float32, (-125, 124)), (torch.float64, (-1021, 1020))],
)
def test_norms_are_those_of_the_ratios(
    dtype: torch.dtype, exponents: tuple[int, int]
) -> None:
    """For the smallest and the largest numbers."""
    V = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=dtype)
    for e in exponents:
        c = math.ldexp(1.0, e)
        assert torch.equal(norms(V * c, 1), torch.tensor([5.0 * c, c], dtype=dtype))
        assert (norm(V * c) / c).item() == norm(V).item()
