"""Hashes of models and data."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from curvop import HessianLinearOperator
from curvop.reporting.fingerprint import hash_of_data, hash_of_parameters
from tests.reporting import targets


def operator(target=None, data=None):
    model, loss, params, batches = target or targets.plain()
    return HessianLinearOperator(
        model, loss, params, batches if data is None else data, check_deterministic=False
    )


@given(st.permutations(range(40)), st.integers(1, 39))
def test_data_in_any_order_and_cut_is_the_same(order, cut):
    X, y = (torch.cat(parts) for parts in zip(*targets.plain()[3], strict=True))
    X, y = X[list(order)], y[list(order)]
    data = [(X[:cut], y[:cut]), (X[cut:], y[cut:])]
    assert hash_of_data(operator(data=data)) == (*hash_of_data(operator())[:2], 2)


def test_data_that_differs_in_a_bit_is_another():
    X, y = (torch.cat(parts) for parts in zip(*targets.plain()[3], strict=True))
    first = hash_of_data(operator(data=[(X, y)]))[0]
    other = X.clone()
    other[3, 2] = torch.nextafter(other[3, 2], torch.tensor(9.0).double())
    relabelled = y.clone()
    relabelled[5] = (relabelled[5] + 1) % 3
    swapped = y.clone()
    i, j = 0, int((y != y[0]).nonzero()[0])
    swapped[[i, j]] = swapped[[j, i]]  # the same labels, of other inputs
    for data in ([(other, y)], [(X, relabelled)], [(X, swapped)], [(X[1:], y[1:])]):
        assert hash_of_data(operator(data=data))[0] != first
    assert hash_of_data(operator(data=[(X, y), (X[:1], y[:1])]))[0] != first


def test_nested_inputs_and_loaders():
    of_dicts = operator(targets.dict_inputs())
    assert hash_of_data(of_dicts)[1:] == (40, 3)
    loader = operator(targets.shuffled())
    state = torch.get_rng_state()
    assert hash_of_data(loader) == hash_of_data(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_and_buffers():
    model, loss, params, data = targets.batch_norm_eval()
    params = list(params)
    op = operator((model, loss, params, data))
    first = hash_of_parameters(op, model)
    assert hash_of_parameters(op, model) == first
    with torch.no_grad():
        model[1].running_mean[0] += 1e-9
    second = hash_of_parameters(op, model)
    assert second != first
    with torch.no_grad():
        params[0].view(-1)[0] += 1e-12
    assert hash_of_parameters(op, model) not in (first, second)
