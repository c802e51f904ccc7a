"""The choice between ways to differentiate: their order, and what is a refusal."""

from __future__ import annotations

import builtins
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from curvop.derivatives.composed import Composed
from curvop.derivatives.differences import Differences
from curvop.derivatives.differentiation import Differentiation, RiskDifferentiation
from curvop.derivatives.double_backward import DoubleBackward
from curvop.derivatives.torch_func import TorchFunc
from curvop.risk import Parameters

Result = TypeVar("Result")
Way = Literal["auto", "func", "backpack", "differences"]
WAYS: tuple[Way, ...] = ("auto", "func", "backpack", "differences")
# The value of ``differentiation=`` for the name of a way, and what that way does.
CALLED: dict[str, Way] = {
    "torch.func": "func",
    "backpack": "backpack",
    "differences": "differences",
}
DOES = {
    "torch.func": "forward mode and vmap",
    "backpack": "double backward",
    "differences": "central differences of first derivatives",
}


class WrongDerivativeError(RuntimeError):
    """No way to differentiate a model gives its derivatives."""


AnyWay = TypeVar("AnyWay", bound=RiskDifferentiation)


def candidates(way: Way, at: Parameters) -> tuple[Differentiation, ...]:
    """The ways to try, in this order.

    Each way with torch's own kernels first, then with those that the library composes;
    differences last.

    Args:
        way: What the user asked for.
        at: The parameters; a closure over them can only be differentiated in place.

    Raises:
        ValueError: If the way is unknown, or impossible for this model.
    """
    if way not in WAYS:
        raise ValueError(
            "Expected differentiation 'auto', 'func', 'backpack' or 'differences', got "
            f"{way!r}."
        )
    if way == "func" and not at.functional:
        raise ValueError(
            "differentiation='func' needs a module, or a dict of parameters with a "
            "callable (params, X) -> prediction; got a closure over the parameters, or "
            "a loss that refers to them."
        )
    func, backpack = TorchFunc(), DoubleBackward()
    by_func = (func, Composed(func))
    by_backpack = (backpack, Composed(backpack))
    if way == "func":
        return by_func
    if way == "backpack":
        return by_backpack
    if way == "differences":
        return (Differences(),)
    return (*(by_func if at.functional else ()), *by_backpack, Differences())


def first_that_works(
    ways: tuple[AnyWay, ...],
    attempt: Callable[[AnyWay], Result],
    say: Callable[[AnyWay, Exception], str] | None = None,
) -> tuple[tuple[AnyWay, ...], Result]:
    """Try one way after the other, and warn if the first one fails.

    Args:
        ways: The ways to try, in this order.
        attempt: What to do with each. If autograd refuses, the next way is tried; any
            other error is raised.
        say: An error in words, for the warning; by default its first line.

    Returns:
        The ways that remain (those before the one that worked are dropped), and what
        the attempt returned.
    """
    refusals: dict[str, tuple[AnyWay, Exception]] = {}  # by the name of the way
    errors: list[Exception] = []
    for i, way in enumerate(ways):
        try:
            result = attempt(way)
        except Exception as error:
            if not is_refusal(error):
                raise
            refusals.setdefault(way.name, (way, error))
            errors.append(error)
            continue
        explain = say or (lambda _, error: first_line(error))
        told = {name: explain(*r) for name, r in refusals.items() if name != way.name}
        warn_of_change(told, way)
        return ways[i:], result
    # an error of the model itself explains more than one of the library
    first = next((e for e in errors if not isinstance(e, WrongDerivativeError)), None)
    wrong = [e for e in errors if isinstance(e, WrongDerivativeError)]
    raise wrong[0] if wrong else first or errors[-1]


def warn_of_change(refusals: dict[str, str], way: RiskDifferentiation) -> None:
    """Warn which ways fail, why, and which one is used instead."""
    if set(refusals) <= {way.name}:  # the same way, with composed kernels
        return
    reasons = ", nor does ".join(f"{name} ({why})" for name, why in refusals.items())
    reasons = reasons.replace(" (", " does not support this model (", 1)
    error = getattr(way, "error", None)
    accuracy = "" if error is None else f", with a relative error of {error:.0e}"
    warnings.warn(
        f"{reasons}. Using {way.name} ({DOES.get(way.name, way.name)}{accuracy}) instead; "
        f"pass differentiation={CALLED.get(way.name, way.name)!r} to choose it yourself.",
        stacklevel=2,
    )


def is_refusal(error: Exception) -> bool:
    """Whether an error is autograd's refusal to differentiate.

    Errors of the user's model or data are not, such as a file that cannot be read.
    """
    if isinstance(error, RecursionError | torch.OutOfMemoryError):
        return False
    package = type(error).__module__.split(".")[0]
    if isinstance(error, RuntimeError):
        return package in (builtins.__name__, "torch", "curvop")
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return where.split(".")[0] in ("torch", "backpack")


def first_line(error: BaseException) -> str:
    """The message of an error, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
