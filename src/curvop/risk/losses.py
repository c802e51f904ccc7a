"""Losses: the sum of the terms, the terms, the share of the divisor."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop.autograd import composed, gradient, leaves_of
from curvop.risk import nested
from curvop.risk.parameters import unwrapped
from curvop.risk.reduction import (
    Divisor,
    batch_divisor,
    class_divisor,
    sum_divisor,
    term_divisor,
)
from curvop.risk.unpacking import spread

LossFunction = Callable[[Any, Any], Tensor]

_CLASS_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)
_TERM_MODULES = (
    nn.L1Loss,
    nn.MSELoss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
    nn.HingeEmbeddingLoss,
    nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.MultiMarginLoss,
    nn.SoftMarginLoss,
)
_CLASS_FUNCTIONS = (F.cross_entropy, F.nll_loss)
# convex in the prediction, hence the GGN is positive semi-definite
CONVEX = {
    *_CLASS_MODULES,
    *_TERM_MODULES,
    *_CLASS_FUNCTIONS,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.kl_div,
    F.soft_margin_loss,
    F.multilabel_soft_margin_loss,
}


@dataclass(frozen=True)
class Loss:
    """A loss in the form that curvature needs; everything else follows by autodiff.

    Attributes:
        reduction: What the user's loss does over its terms.
        total: ``(prediction, y) ->`` sum of the loss terms, a scalar.
        terms: ``(prediction, y) ->`` unreduced loss terms, or ``None``.
        divisor: ``(prediction, y) ->`` this batch's share of what "mean" divides by.
        convex: Whether the loss is known to be convex in the prediction.
        verify: Checks on one batch what was assumed about the user's loss.
        source: What the user passed.
    """

    reduction: str
    total: LossFunction
    terms: LossFunction | None
    divisor: Divisor
    convex: bool
    verify: Callable[[Any, Any], None]
    source: Any = None

    @property
    def kind(self) -> Any:
        """What identifies the loss: torch's class or function, or the user's own."""
        return kind_of(self.source)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return _name(self.source)

    def option(self, name: str, default: Any) -> Any:
        """An argument of the user's loss, by its name."""
        source = self.source
        if isinstance(source, functools.partial):
            return source.keywords.get(name, default)
        return getattr(source, name, default)

    @property
    def is_trusted(self) -> bool:
        """Whether there is nothing to verify."""
        return self.verify is _trust


def as_loss(loss_func: Any, reduction: str | Divisor | None = None) -> Loss:
    """The user's loss as a :class:`Loss`.

    Args:
        loss_func: A torch loss module, a loss of ``torch.nn.functional`` (or a
            ``functools.partial`` of one), or any callable ``(prediction, y) -> scalar``.
        reduction: ``"mean"`` or ``"sum"``, needed for a callable that does not state it;
            or a callable ``(prediction, y) ->`` the number that the loss was divided by.

    Raises:
        TypeError: If ``loss_func`` is not callable.
        ValueError: If the reduction is missing, unknown or contradicted.
    """
    if not callable(loss_func):
        raise TypeError(
            "Expected a loss: a torch loss module or a callable (prediction, y) -> "
            f"scalar, got {type(loss_func).__name__}."
        )
    if isinstance(loss_func, nn.Module):
        loss_func = unwrapped(loss_func)
    loss = _understood(loss_func, reduction)
    return replace(
        loss,
        source=loss_func,
        total=composed(loss.total),
        terms=None if loss.terms is None else composed(loss.terms),
        divisor=composed(loss.divisor),
    )


def _understood(loss_func: Any, reduction: str | Divisor | None) -> Loss:
    """The user's loss, before composed kernels are tried."""
    _refuse_legacy_arguments(loss_func)
    told = told_reduction(loss_func)
    if callable(reduction):
        return _with_divisor(loss_func, reduction)
    if reduction is None and told is None:
        raise ValueError(
            "Expected a loss that tells its reduction, got "
            f"{_name(loss_func)}. Pass reduction='mean' or reduction='sum' (what it does "
            "over its terms)."
        )
    for value in (reduction, told):
        if value is not None and value not in ("mean", "sum", "batchmean"):
            raise ValueError(
                f"Expected reduction 'mean' or 'sum', got {value!r}. Curvature is that "
                "of a scalar loss."
            )
    if reduction is not None and told is not None and reduction != told:
        raise ValueError(
            f"reduction={reduction!r} contradicts the loss, whose reduction is {told!r}. "
            "Leave the argument out."
        )
    name = told or reduction
    assert isinstance(name, str)
    reduced = _reducer(loss_func)
    if reduced is None:
        return _opaque(loss_func, name)
    return _transparent(loss_func, name, reduced)


def _refuse_legacy_arguments(loss_func: Any) -> None:
    """Torch's deprecated arguments take precedence over ``reduction``."""
    legacy = {"size_average", "reduce"} & set(getattr(loss_func, "keywords", ()))
    if legacy:
        raise ValueError(
            f"Expected a loss with reduction=, got the deprecated {sorted(legacy)}. Say "
            "reduction='mean' or reduction='sum' instead."
        )


def told_reduction(loss_func: Any) -> str | None:
    """The reduction that a module, function or partial states itself."""
    if isinstance(loss_func, functools.partial) and "reduction" in loss_func.keywords:
        return str(loss_func.keywords["reduction"])
    told = getattr(loss_func, "reduction", None)
    if told is not None:
        return str(told)
    default = _reduction_parameter(loss_func)
    return default if isinstance(default, str) else None


def _reduction_parameter(loss_func: Any) -> object:
    """Default of the keyword ``reduction`` of a function; ``None`` if it has none."""
    if isinstance(loss_func, nn.Module):
        return None
    try:
        parameter = inspect.signature(loss_func).parameters.get("reduction")
    except (TypeError, ValueError):
        return None
    return None if parameter is None else parameter.default


def _reducer(loss_func: Any) -> Callable[[str], LossFunction] | None:
    """How to obtain the same loss with another reduction, if that is possible."""
    if _has_forward_of_its_own(loss_func):
        return None  # it need not use the attribute
    if isinstance(loss_func, nn.Module) and hasattr(loss_func, "reduction"):

        def module(reduction: str) -> LossFunction:
            other = copy.copy(loss_func)  # shares weights; only the attribute differs
            other.__dict__["reduction"] = reduction
            return spread(other)

        return module
    if _reduction_parameter(loss_func) is not None:
        return lambda reduction: spread(functools.partial(loss_func, reduction=reduction))
    return None


def _has_forward_of_its_own(loss_func: Any) -> bool:
    """Whether an instance computes something other than its class."""
    return isinstance(loss_func, nn.Module) and "forward" in vars(loss_func)


def _is_altered(loss_func: nn.Module) -> bool:
    """Whether a loss of torch's may compute something other than torch's formula."""
    hooks = (loss_func._forward_hooks, loss_func._forward_pre_hooks)
    is_called_otherwise = type(loss_func).__call__ is not nn.Module.__call__
    return _has_forward_of_its_own(loss_func) or any(hooks) or is_called_otherwise


def _kind(loss_func: Any) -> Any:
    """The torch loss whose formula this is: its class or function, else ``None``."""
    if isinstance(loss_func, nn.Module):
        return None if _is_altered(loss_func) else _formula(loss_func)
    function = loss_func.func if isinstance(loss_func, functools.partial) else loss_func
    in_torch = getattr(function, "__module__", None) == "torch.nn.functional"
    return function if in_torch else None


def _formula(loss_func: nn.Module) -> Any:
    """The torch loss that the class of a module computes, hooks aside."""
    known = (*_CLASS_MODULES, *_TERM_MODULES)
    return next((c for c in known if type(loss_func).forward is c.forward), None)


def kind_of(loss_func: Any) -> Any:
    """What identifies a loss: torch's class or function, or the user's own."""
    kind = _kind(loss_func)
    if kind is not None:
        return kind
    if isinstance(loss_func, functools.partial):
        return kind_of(loss_func.func)
    is_of_class = isinstance(loss_func, nn.Module) and not _is_altered(loss_func)
    return type(loss_func) if is_of_class else loss_func


def _transparent(
    loss_func: Any, reduction: str, reduced: Callable[[str], LossFunction]
) -> Loss:
    """A loss that can be asked for its unreduced terms."""
    kind = _kind(loss_func)
    is_formula = isinstance(loss_func, nn.Module) and _formula(loss_func) is not None
    terms = _unreduced(loss_func, reduced("none"))
    # torch's own sum is one kernel; of others only the terms are certain
    total = _summed(terms) if kind is None else reduced("sum")
    divisor: Divisor
    if reduction == "sum":
        divisor = sum_divisor
    elif reduction == "batchmean":
        divisor = batch_divisor
    elif isinstance(loss_func, _CLASS_MODULES) and is_formula:
        divisor = class_divisor(loss_func.weight, loss_func.ignore_index)
    elif kind in _CLASS_FUNCTIONS:
        keywords = getattr(loss_func, "keywords", {})
        divisor = class_divisor(keywords.get("weight"), keywords.get("ignore_index", -100))
    else:
        divisor = term_divisor(terms)

    def verify(prediction: Any, y: Any) -> None:
        with torch.enable_grad():  # what depends on parameters by itself has a graph
            compare(prediction, y)

    def compare(prediction: Any, y: Any) -> None:
        t = terms(prediction, y)
        value, Z = reduced(reduction)(prediction, y), divisor(prediction, y)
        expected = t.sum() if reduction == "sum" else t.sum() / Z
        if not _close(value, expected):
            got, sum_of_terms = (float(t.detach()) for t in (value, expected))
            raise ValueError(
                f"{_name(loss_func)} with reduction={reduction!r} gives "
                f"{got:.6g}, but the sum of its terms divided by their number "
                f"gives {sum_of_terms:.6g}. Pass reduction=<callable (prediction, y) "
                "-> what the loss divides by>."
            )

    # torch's own losses need no check
    check = verify if kind is None else _trust
    return Loss(reduction, total, terms, divisor, kind in CONVEX, check)


def _unreduced(loss_func: Any, terms: LossFunction) -> LossFunction:
    """The terms of a loss; other than torch's are checked not to be a scalar."""
    if _kind(loss_func) is not None:
        return terms

    def checked(prediction: Any, y: Any) -> Tensor:
        t = terms(prediction, y)
        if not isinstance(t, Tensor) or t.ndim == 0:
            raise ValueError(
                f"{_name(loss_func)} returns a scalar for reduction='none'. Give a loss "
                "that honours it, or one without a reduction argument or attribute."
            )
        return t

    return checked


def _summed(terms: LossFunction) -> LossFunction:
    return lambda prediction, y: terms(prediction, y).sum()


def _scalar(loss_func: LossFunction) -> LossFunction:
    """The user's loss, checked to reduce."""
    loss_of = spread(loss_func)

    def value(prediction: Any, y: Any) -> Tensor:
        loss = loss_of(prediction, y)
        if not isinstance(loss, Tensor) or loss.ndim > 0:
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
            raise ValueError(
                f"Expected a scalar loss, a tensor of shape (), got from "
                f"{_name(loss_func)} a {type(loss).__name__}{shape}. Reduce it with "
                ".sum() or .mean()."
            )
        return loss

    return value


def _opaque(loss_func: LossFunction, reduction: str) -> Loss:
    """A callable that only gives a scalar; "mean" is over the data."""

    def on(prediction: Any, y: Any, rows: slice) -> Tensor:
        cut = (nested.map_tensors(lambda t: t[rows], part) for part in (prediction, y))
        return spread(loss_func)(*cut)

    def verify(prediction: Any, y: Any) -> None:
        with torch.enable_grad():  # what depends on parameters by itself has a graph
            compare(prediction, y)

    def compare(prediction: Any, y: Any) -> None:
        n, a = _num_examples(prediction), _num_examples(prediction) // 3
        value = _scalar(loss_func)(prediction, y)
        try:
            first, rest = (on(prediction, y, s) for s in (slice(a), slice(a, n)))
        except (IndexError, RuntimeError, ValueError):
            return  # cannot be split: nothing to compare with
        is_sum = reduction == "sum"
        together = first + rest if is_sum else (first * a + rest * (n - a)) / n
        if a and not _close(value, together):
            raise ValueError(
                f"{_name(loss_func)} with reduction={reduction!r} is no {reduction} over "
                "examples (weights, ignored targets, sequences of different length, a term "
                "of its own?), so that batches cannot be put together. Pass the torch "
                "loss itself, a callable with a keyword reduction, or reduction=<callable "
                "(prediction, y) -> what the loss divides by>."
            )

    def examples(prediction: Any, y: Any) -> float:
        return float(_num_examples(prediction))

    if reduction == "sum":
        return Loss("sum", _scalar(loss_func), None, sum_divisor, False, verify)
    return _with_divisor(loss_func, examples, verify)


def _with_divisor(
    loss_func: LossFunction,
    divisor: Divisor,
    verify: Callable[[Any, Any], None] | None = None,
) -> Loss:
    """A mean, with the user's function for what it divides by."""
    divisor = spread(divisor)

    def total(prediction: Any, y: Any) -> Tensor:
        Z = divisor(prediction, y)
        if _is_zero(Z):  # a mean over nothing is NaN; it adds nothing
            outputs = nested.differentiable(prediction)
            return torch.stack([0 * t.sum() for t in outputs]).sum()
        return _scalar(loss_func)(prediction, y) * Z

    reducer = _reducer(loss_func)
    terms = None if reducer is None else _unreduced(loss_func, reducer("none"))
    convex = _kind(loss_func) in CONVEX
    return Loss("mean", total, terms, divisor, convex, verify or _trust)


def _is_zero(Z: float | Tensor) -> bool:
    """Whether a divisor vanishes.

    While a product is recorded there is no value, and it is taken to be non-zero. Should it
    vanish in a batch, the recorded product is NaN, and ``linearize`` rejects it.
    """
    try:
        return not Z
    except RuntimeError:
        return False


def _num_examples(prediction: Any) -> int:
    """Leading axis of the prediction: what a plain callable averages over."""
    first = next(nested.tensors(prediction), None)
    return first.shape[0] if first is not None and first.ndim else 1


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two ways to compute a loss agree.

    If the loss depends on parameters other than through the prediction, the gradients must
    agree as well: a term that is small in the loss need not be small in its curvature.
    """
    if not _near(a, b):
        return False
    leaves = list({id(p): p for p in leaves_of([a, b])}.values())
    if not leaves:
        return True
    slopes = (gradient(t, leaves, create_graph=False) for t in (a, b))
    flat = (torch.cat([g.flatten() for g in grads]) for grads in slopes)
    return _near(*flat)


def _near(a: Tensor, b: Tensor) -> bool:
    """Up to rounding, relative to the largest number."""
    a, b = a.detach(), b.detach()
    rounding = max(1e-3, 4 * torch.finfo(a.dtype).eps)
    a, b = a.double(), b.double()
    scale = float(b.abs().max()) if b.numel() else 0.0
    atol = 1e-12 if b.ndim == 0 else rounding * scale
    return bool(torch.isclose(a, b, rtol=rounding, atol=atol, equal_nan=True).all())


def _trust(prediction: Any, y: Any) -> None:
    """Nothing to verify."""


def _name(loss_func: Any) -> str:
    return str(getattr(loss_func, "__name__", type(loss_func).__name__))
