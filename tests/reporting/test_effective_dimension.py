"""Effective dimensions from Gauss rules, against the eigenvalues."""

from __future__ import annotations

import pytest
import torch

from curvop import as_operator, spectral_density
from curvop.reporting.effective_dimension import effective_dimensions

STEPS = 40
RULES = {
    "flat": torch.linspace(0, 1, 300),
    "decay": torch.logspace(0, -8, 300),
    "low rank": torch.cat([torch.zeros(250), torch.linspace(1, 5, 50)]),
    "small": torch.tensor([1.0, 1e-3, 0.0]),
    "indefinite": torch.linspace(-0.2, 1, 300),
}


def rules(values, seed, probes=6):
    A = as_operator(torch.diag(values.double()))
    generator = torch.Generator().manual_seed(seed)
    found = spectral_density(A, num_probes=probes, num_matvecs=STEPS, generator=generator)
    return found.nodes, found.weights, len(values), STEPS


@pytest.mark.parametrize("name", RULES)
def test_error_bars_cover_the_truth(name):
    values = RULES[name].double()
    psd = bool((values >= 0).all())
    for seed in range(6):
        d = effective_dimensions(*rules(values, seed), psd=psd)
        kept = values.clamp(min=0)
        true = (kept / (kept + d.damping[:, None])).sum(1)
        off = (d.values - true).abs()
        assert (off <= 4 * d.standard_error + 1e-9 * len(values)).all()
        # bars that cover everything would say nothing
        large = d.damping >= 1e-2 * d.damping[-1]
        if len(values) >= 300:
            assert (d.standard_error[large] <= 0.35 * d.values[large]).all()


def test_exact_where_the_rules_are():
    values = RULES["small"].double()
    d = effective_dimensions(*rules(values, 0), psd=True)
    # the spread of the probes remains, truncation does not
    assert (d.standard_error < 3).all()
    identity = effective_dimensions(*rules(torch.full((20,), 2.0), 0), psd=True)
    true = 20 * 2 / (2 + identity.damping)
    assert torch.allclose(identity.values, true, rtol=1e-10)
    assert (identity.standard_error <= 1e-9).all()


def test_it_falls_with_the_damping():
    d = effective_dimensions(*rules(RULES["decay"], 0), psd=True)
    assert (d.damping.diff() > 0).all()
    assert (d.values.diff() < 0).all()
    assert float(d.values.max()) <= 300


def test_no_positive_curvature_is_zero():
    d = effective_dimensions(*rules(-RULES["flat"] - 0.1, 0), psd=False)
    assert (d.values == 0).all()


def test_of_one_probe_nothing_is_known():
    d = effective_dimensions(*rules(RULES["flat"], 0, probes=1), psd=True)
    assert d.standard_error.isnan().all()
