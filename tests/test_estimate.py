"""Numbers with error bars."""

from __future__ import annotations

import dataclasses

import pytest

from curvop import Estimate


def test_is_a_number_with_an_error_bar():
    estimate = Estimate(2.0, 0.125, 10)
    assert float(estimate) == 2.0
    assert estimate == Estimate(2.0, 0.125, 10)
    assert str(estimate) == "2 ± 0.12"


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Estimate(2.0, 0.125, 10).value = 3.0
