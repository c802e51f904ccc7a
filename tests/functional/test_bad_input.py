"""Messages: expected, got, how to mend."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvop.functional import approximate_hvp, exact_hvp, hessian_row_sum, hessian_trace

W = torch.ones(2, requires_grad=True)
ONES = torch.ones(2)

BAD_FUNCTIONS = [
    (lambda: W, ValueError, r"scalar.*\(2,\).*\.sum\(\)"),
    (lambda: 1.0, TypeError, "floating-point tensor.*float"),
    (lambda: W.sum() * 1j, TypeError, "complex"),
    (lambda: W.sum().int(), TypeError, "int32"),
    (lambda: W.sum() * float("inf"), ValueError, "finite.*inf"),
    (lambda: W.detach().sum(), ValueError, r"without a graph.*detach"),
]
BAD_PARAMETERS = [
    ([torch.ones(2)], ValueError, r"require.*requires_grad_"),
    ([W, torch.ones(2)], ValueError, "at 1"),
    (torch.ones(2).int(), TypeError, "int32"),
    (torch.ones(2, dtype=torch.complex64), TypeError, "complex64"),
    (3, TypeError, r"int.*list\(model.parameters"),
    (nn.Tanh(), TypeError, r"Tanh.*list\(model.parameters"),
    (["w"], TypeError, "str at 0"),
    (list(nn.Linear(2, 2).named_parameters()), TypeError, "tuple at 0"),
    ({"w": None}, TypeError, "NoneType at 'w'"),
    ([], ValueError, "at least one"),
    ({}, ValueError, "at least one"),
    ([W, W], ValueError, "once.*twice"),
]
BAD_VECTORS = [
    (W, torch.ones(3), ValueError, r"\(2,\).*\(3,\)"),
    (W, torch.ones(2, 1), ValueError, r"\(2,\).*\(2, 1\)"),
    (W, torch.ones(2).double(), TypeError, r"float32.*float64.*\.to\("),
    (W, torch.ones(2, dtype=torch.long), TypeError, "float32.*int64"),
    (W, torch.ones(2, device="meta"), ValueError, "cpu.*meta"),
    (W, [], ValueError, "1 tensors.*got 0"),
    (W, [ONES, ONES], ValueError, "1 tensors.*got 2"),
    (W, [torch.ones(3)], ValueError, r"\(2,\) at 0, got \(3,\)"),
    (W, [1.0], TypeError, "float at 0"),
    (W, iter([ONES]), TypeError, "list_iterator"),
    (W, None, TypeError, "NoneType"),
    ([W], {"w": ONES}, TypeError, "no names"),
    ({"w": W}, {"u": ONES}, ValueError, "'w'.*'u'"),
]


@pytest.mark.parametrize("hvp", [exact_hvp, approximate_hvp])
@pytest.mark.parametrize(("params", "v", "error", "message"), BAD_VECTORS)
def test_vectors(hvp, params, v, error, message):
    with pytest.raises(error, match=message):
        hvp(lambda: (W**2).sum(), params, v)


CALLS = {
    "exact_hvp": lambda f, p: exact_hvp(f, p, ONES),
    "approximate_hvp": lambda f, p: approximate_hvp(f, p, ONES),
    "hessian_trace": hessian_trace,
    "hessian_row_sum": hessian_row_sum,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMETERS)
def test_parameters(name, params, error, message):
    with pytest.raises(error, match=message):
        CALLS[name](lambda: (W**2).sum(), params)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("func", "error", "message"), BAD_FUNCTIONS)
def test_functions(name, func, error, message):
    before = W.detach().clone()
    with pytest.raises(error, match=message):
        CALLS[name](func, W)
    assert torch.equal(W.detach(), before)
