"""Numbers with error bars."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from curvop import Estimate
from curvop.estimate import DiagonalEstimate
from curvop.operators import Space

DIAGONAL = DiagonalEstimate(
    torch.arange(5.0),
    torch.ones(5),
    10,
    Space((torch.Size((2, 2)), torch.Size(())), ("a", "b")),
)


def test_is_a_number_with_an_error_bar():
    estimate = Estimate(2.0, 0.125, 10)
    assert float(estimate) == 2.0
    assert estimate == Estimate(2.0, 0.125, 10)
    assert str(estimate) == "2 ± 0.12"


@pytest.mark.parametrize("estimate", [Estimate(2.0, 0.125, 10), DIAGONAL])
def test_is_frozen(estimate):
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.value = 3.0


def test_a_diagonal_in_blocks():
    assert {k: v.tolist() for k, v in DIAGONAL.blocks().items()} == {
        "a": [[0.0, 1.0], [2.0, 3.0]],
        "b": 4.0,
    }
    assert DIAGONAL.block_errors()["a"].shape == (2, 2)
    plain = dataclasses.replace(DIAGONAL, space=Space(DIAGONAL.space.shapes))
    assert list(plain.blocks()) == [0, 1]
