"""One look at a model while it computes: what it calls, writes and leaves unused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from curvop.inspection.problem import Understood
from curvop.inspection.sample import Sample
from curvop.inspection.wording import explained
from curvop.operators import differ, tolerance
from curvop.risk import Parameters, modules_in, nested

_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
)


@dataclass(frozen=True)
class Observation:
    """What was seen of a problem on a sample."""

    given: Understood
    sample: Sample
    error: str | None = None  # why loss and gradient cannot be computed
    num_dropouts: int = 0  # calls of dropout that are on
    num_attentions: int = 0  # calls of scaled_dot_product_attention
    custom: tuple[type, ...] = ()  # custom functions in the graph
    written: tuple[str, ...] = ()  # names of buffers that the forward pass writes
    unused: tuple[int, ...] = ()  # positions of parameters that the loss ignores
    not_finite: tuple[str, ...] = ()  # among prediction, loss and gradient
    is_random: bool = False  # loss or gradient differ the second time

    @property
    def modules(self) -> list[tuple[str, nn.Module]]:
        """All layers that the model is known to call, with their names."""
        return [
            (name or type(m).__name__, m)
            for module in modules_in(self.given.problem.model)
            for name, m in module.named_modules()
        ]


def observe(given: Understood, sample: Sample) -> Observation:
    """Look at loss and gradient; on the whole batch where a few data do not do."""
    seen = _observe(given, sample)
    if sample.size == sample.first_size or not (seen.error or seen.not_finite):
        return seen
    again = _observe(given, sample.whole())  # its first targets may all be ignored, say
    return seen if again.error or again.not_finite else again


def _observe(given: Understood, sample: Sample) -> Observation:
    seen = Observation(given, sample)
    try:
        return _twice(seen, given, *sample.batch)
    except Exception as error:
        return replace(seen, error=explained(error))


def _twice(seen: Observation, given: Understood, X: Any, y: Any) -> Observation:
    """Loss and gradient, of the user's model without copied buffers."""
    parameters, loss = given.parameters, given.loss
    with torch.enable_grad(), parameters.leaves() as params, parameters.place(params):
        before = [(name, t, t.clone()) for name, t in _buffers(given.call)]
        with _Calls() as calls:
            prediction = given.call(params, X)
        after = dict(_buffers(given.call))
        total = loss.total(prediction, y)
        seen = replace(
            seen,
            num_dropouts=calls.num_dropouts,
            num_attentions=calls.num_attentions,
            custom=tuple(dict.fromkeys(_custom_functions(total))),
            written=tuple(n for n, t, was in before if _is_written(after[n], t, was)),
        )
        try:
            first = _gradient(total, params)
        except Exception as error:
            return replace(seen, error=explained(error))
        is_averaging = loss.reduction == "sum" or bool(loss.divisor(prediction, y))
    with torch.enable_grad(), parameters.leaves() as params, parameters.place(params):
        again = loss.total(given.call(params, X), y)
        second = _gradient(again, params)
    return replace(
        seen,
        unused=tuple(i for i, g in enumerate(first) if g is None),
        not_finite=tuple(_not_finite(prediction, total, is_averaging, first)),
        is_random=_differ([total, *first], [again, *second], parameters),
    )


def _differ(
    first: Sequence[Tensor | None], second: Sequence[Tensor | None], at: Parameters
) -> bool:
    rounding = tolerance(*(p.dtype for p in at.tensors))
    return any(
        differ(a.detach()[None], b.detach()[None], rounding)
        for a, b in zip(first, second, strict=True)
        if a is not None and b is not None and a.numel()
    )


class _Calls(TorchFunctionMode):
    """Counts calls that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.num_dropouts = 0
        self.num_attentions = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            names = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            self.num_dropouts += bool(names.get("training", True) and names.get("p", 0.5))
        if func is F.scaled_dot_product_attention:
            self.num_attentions += 1
            p = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            self.num_dropouts += bool(p)
        return func(*args, **kwargs)


def _buffers(call: Any) -> Iterator[tuple[str, Tensor]]:
    for module in modules_in(call):
        for name, m in module.named_modules():
            for key, b in m._buffers.items():
                if b is not None:
                    yield f"{name}.{key}" if name else key, b


def _is_written(now: Tensor, before: Tensor, was: Tensor) -> bool:
    # batch norm writes without counting a version
    is_same = now is before and torch.equal(now.nan_to_num(), was.nan_to_num())
    return not is_same


def _gradient(total: Tensor, params: Any) -> list[Tensor | None]:
    if not total.requires_grad:
        return [None for _ in params]
    found = torch.autograd.grad(total, params, retain_graph=True, allow_unused=True)
    return [None if g is None else g.detach() for g in found]


def _custom_functions(total: Tensor) -> Iterator[type]:
    """Subclasses of ``torch.autograd.Function`` in a graph."""
    seen: set[Any] = set()
    reached = [total.grad_fn]
    while reached:
        node = reached.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            yield type(node)._forward_cls
        reached += [n for n, _ in node.next_functions]


def _not_finite(
    prediction: Any, total: Tensor, is_averaging: bool, first: Any
) -> Iterator[str]:
    if not all(bool(t.isfinite().all()) for t in nested.differentiable(prediction)):
        yield "prediction"
    if not bool(total.isfinite().all()) or not is_averaging:  # a mean over nothing
        yield "loss"
    if not all(bool(g.isfinite().all()) for g in first if g is not None):
        yield "gradient"
