"""The choice between forms: the first whose products are the operator's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from curvop.curvature import Form, check_columns
from curvop.derivatives import first_line, is_refusal
from curvop.operators import Blocks

Products = TypeVar("Products")


def verify(got: Sequence[Tensor], right: Sequence[Tensor], rounding: float) -> None:
    """Refuse a product with a probe that is not the operator's own.

    Raises:
        RuntimeError: If it is not.
    """
    scale = max(float(b.abs().max()) for b in right if b.numel())
    pairs = [(a, b) for a, b in zip(got, right, strict=True) if b.numel()]
    error = max(float((a - b).abs().max()) for a, b in pairs)
    if not error <= rounding * scale:
        raise RuntimeError(
            f"the linearised product is off by {error / max(scale, 1e-300):.1e} relative: "
            "its batches cannot be merged or its graph not be recorded"
        )


def verify_columns(
    one: Blocks, multiply: Callable[[Blocks], Blocks], v: Blocks, rounding: float
) -> None:
    """Refuse a product of two columns that is not that of each.

    Args:
        one: The product of ``v``.
        multiply: What is to be checked.
        v: A column, ``[1, *n_i]``.
        rounding: Relative difference that is none.

    Raises:
        WrongDerivativeError: If it is another.
    """
    two = multiply([torch.cat([b, 2 * b]) for b in v])
    check_columns(one, [b[1:] / 2 for b in two], 4 * rounding)


def first_right(
    forms: Sequence[tuple[Form, Callable[[], Products]]],
    check: Callable[[Products], None],
    *,
    is_rough: bool,
) -> tuple[Form, Products]:
    """The first form that can be derived and is right.

    Args:
        forms: What to try, in this order. The only one, and "scratch", must do.
        check: Raises if the products are not the operator's own.
        is_rough: Whether the operator is known to be no more than approximate.
    """
    for form, derive in forms:
        try:
            products = derive()
            check(products)
            return form, products
        except Exception as error:
            if len(forms) == 1 or form == "scratch":
                raise
            if form in ("rows", "factored"):
                continue  # a matter of speed only
            if not is_refusal(error):
                raise
            if form == "recorded" or not is_rough:
                _warn_not_kept(form, error)
    raise AssertionError  # the last form returns or raises


def _warn_not_kept(form: Form, error: Exception) -> None:
    """Say why a form does not do, and what is kept instead."""
    what = {
        "recorded": ("The product cannot be recorded", "keeps autograd's graphs instead"),
        "graphs": ("Autograd's graphs do not do", "keeps nothing"),
    }
    refused, instead = what[form]
    warnings.warn(
        f"{refused} ({first_line(error)}). The linearised operator {instead}.",
        stacklevel=6,
    )
