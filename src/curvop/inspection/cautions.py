"""Cautions about model, loss and data, each with a remedy: one rule each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from curvop.inspection.forecast import Forecast
from curvop.inspection.observation import Observation
from curvop.risk import modules_in, nested, unwrapped

Severity = Literal["stop", "care", "note"]


@dataclass(frozen=True)
class Caution:
    """Something in model, loss or data that needs care.

    Attributes:
        severity: ``"stop"``: operators are refused, or wrong. ``"care"``: the matrix may
            not be the one that you expect, or is less accurate. ``"note"``: handled by
            the library, for your information.
        what: What it is.
        where: Names of the modules or tensors.
        remedy: What to do, in one line.
    """

    severity: Severity
    what: str
    where: tuple[str, ...]
    remedy: str


# -------------------------------------------------------------- loss and data


def _reduction(seen: Observation) -> Iterator[Caution]:
    if seen.given.guessed is not None:
        yield Caution(
            "stop",
            "the loss does not tell its reduction",
            (),
            f"pass reduction={seen.given.guessed!r}: that is what it does on this batch"
            if seen.given.guessed != "unknown"
            else "pass reduction=<callable (prediction, y) -> what the loss divides by>",
        )
    if seen.given.complaint is not None:
        yield Caution("stop", "the loss is not what it says", (), seen.given.complaint)


def _data(seen: Observation) -> Iterator[Caution]:
    sample = seen.sample
    if sample.is_one_shot:
        yield Caution(
            "stop",
            "the data is a one-shot iterator",
            (),
            "pass list(data) or a DataLoader: each product is a pass; this check has "
            "taken one batch",
        )
    if sample.is_changing:
        yield Caution(
            "stop",
            "the data differs from pass to pass",
            (),
            "turn off random augmentation, or keep one pass as a list",
        )
    if sample.is_uneven:
        yield Caution(
            "note",
            "batches differ in size",
            (),
            "nothing to do: every datum counts the same",
        )


# ------------------------------------------------------------------ the model


def _fails(seen: Observation) -> Iterator[Caution]:
    if seen.error is not None:
        yield Caution(
            "stop",
            f"loss and gradient cannot be computed: {seen.error}",
            (),
            "run loss_func(model(X), y).backward() on one batch of the data first",
        )


def _dropout(seen: Observation) -> Iterator[Caution]:
    where = tuple(f"{name} ({type(m).__name__})" for name, m in seen.modules if _drops(m))
    if where or seen.num_dropouts:
        yield Caution(
            "stop" if seen.is_random else "care",
            "dropout is on",
            where or ("torch.nn.functional",),
            "call model.eval(): otherwise each product is of another matrix",
        )
    elif seen.is_random:
        yield Caution(
            "stop",
            "loss or gradient differ from one evaluation to the next",
            (),
            "turn off what is random in the model (noise, sampling, non-deterministic "
            "kernels)",
        )


def _drops(m: nn.Module) -> bool:
    if not m.training:
        return False
    if isinstance(m, _DropoutNd):
        return m.p > 0
    if isinstance(m, nn.RNNBase):
        return m.dropout > 0 and m.num_layers > 1
    return isinstance(m, nn.MultiheadAttention) and m.dropout > 0


def _batch_norm(seen: Observation) -> Iterator[Caution]:
    where = tuple(
        f"{name} ({type(m).__name__})"
        for name, m in seen.modules
        if _is_batch_norm(m) and (m.training or m.running_mean is None)
    )
    if where:
        yield Caution(
            "care",
            "batch norm normalises with the statistics of each batch",
            where,
            "call model.eval(), or pass all data as one batch: the matrix depends on how "
            "the data is cut",
        )


def _is_batch_norm(m: nn.Module) -> bool:
    return isinstance(m, _BatchNorm) and not isinstance(
        m, nn.modules.instancenorm._InstanceNorm
    )


def _written(seen: Observation) -> Iterator[Caution]:
    layers = [(name, m) for name, m in seen.modules if _is_batch_norm(m)]
    norms = {f"{name}.{key}" for name, m in layers for key in m._buffers}
    statistics = tuple(n for n in seen.written if n in norms)
    others = tuple(n for n in seen.written if n not in norms)
    if statistics:
        yield Caution(
            "note",
            "running statistics are updated by a forward pass",
            statistics,
            "nothing to do: each product works on copies, yours stay as they are",
        )
    if others:
        yield Caution(
            "note",
            "buffers are written in the forward pass",
            others,
            "nothing to do, unless the prediction depends on earlier calls: each product "
            "starts from copies",
        )


def _attention(seen: Observation) -> Iterator[Caution]:
    where = tuple(
        f"{name} ({type(m).__name__})"
        for name, m in seen.modules
        if isinstance(m, nn.MultiheadAttention)
    )
    if seen.num_attentions:
        where += (f"{seen.num_attentions} × scaled_dot_product_attention",)
    if where:
        yield Caution(
            "note",
            "fused attention has no second derivatives",
            where,
            "nothing to do: the plain kernel is used, whose memory grows with the square "
            "of the length",
        )


def _custom(seen: Observation) -> Iterator[Caution]:
    for f in seen.custom:
        if f.__name__ == "CheckpointFunction":
            yield Caution(
                "stop",
                "re-entrant activation checkpointing",
                ("torch.utils.checkpoint",),
                "pass use_reentrant=False: the re-entrant form has no second derivatives",
            )
            continue
        lacks = [name for name in ("setup_context", "jvp") if _inherits(f, name)]
        remedy = "nothing to do: it has all that torch.func needs"
        if lacks:
            remedy = (
                f"double backward differentiates it; define {' and '.join(lacks)} "
                "(and generate_vmap_rule) for torch.func"
            )
        yield Caution("note", "custom autograd function", (f.__name__,), remedy)


def _inherits(f: type, name: str) -> bool:
    return getattr(f, name, None) is getattr(Function, name, None)


def _wrong_backward(
    seen: Observation, forecasts: tuple[Forecast, ...], is_gradient: bool | None
) -> Iterator[Caution]:
    wrong = tuple(f.matrix for f in forecasts if f.way == "differences")
    if wrong:
        suspects = tuple(f.__name__ for f in seen.custom)
        yield Caution(
            "care",
            "second derivatives by autograd are wrong, or there are none "
            f"({', '.join(wrong)})",
            suspects,
            "differences of first derivatives are taken, which are slower; let each custom "
            "backward compute with differentiable operations on saved tensors: no detach, "
            ".data or no_grad",
        )
    if is_gradient is False:
        yield Caution(
            "care",
            "the gradient is not that of the loss: something is detached, or a custom "
            "backward is not the derivative",
            tuple(f.__name__ for f in seen.custom),
            "if that is meant (a straight-through estimator, a target without gradient), "
            "so are these matrices",
        )


def _wrapped(seen: Observation) -> Iterator[Caution]:
    if not isinstance(seen.given.problem.model, nn.Module):
        return
    if unwrapped(seen.given.problem.model) is not seen.given.problem.model:
        yield Caution(
            "note",
            "the model is wrapped",
            (type(seen.given.problem.model).__name__,),
            "nothing to do: the module inside is differentiated; linearize(compile=True) "
            "compiles products",
        )


# -------------------------------------------------------------- the parameters


def _unused(seen: Observation) -> Iterator[Caution]:
    where = _names(seen, seen.unused)
    if where:
        everything = len(where) == len(seen.given.parameters.tensors)
        yield Caution(
            "stop" if everything else "care",
            "parameters that the loss does not depend on",
            where,
            "pass the parameters that the model computes with"
            if everything
            else "leave them out of params: their rows and columns are zero",
        )


def _tied(seen: Observation) -> Iterator[Caution]:
    places: dict[int, list[str]] = {}
    for module in modules_in(seen.given.problem.model):
        for name, p in module.named_parameters(remove_duplicate=False):
            places.setdefault(id(p), []).append(name)
    given = {id(p) for p in seen.given.parameters.tensors}
    where = tuple(
        " = ".join(dict.fromkeys(names))
        for p, names in places.items()
        if p in given and len(set(names)) > 1
    )
    if where:
        yield Caution(
            "note",
            "tied parameters",
            where,
            "nothing to do: they are one block, differentiated in every place",
        )


def _frozen(seen: Observation) -> Iterator[Caution]:
    given = {id(p) for p in seen.given.parameters.tensors}
    if isinstance(seen.given.problem.model, nn.Module):
        names = set(seen.given.parameters.names or ())
        constant = tuple(
            name
            for name, p in unwrapped(seen.given.problem.model).named_parameters()
            if id(p) not in given and name not in names
        )
        if constant:
            yield Caution(
                "note",
                "parameters of the model that were not passed",
                constant,
                "nothing to do if that is meant: they are constants",
            )
    off = [i for i, p in enumerate(seen.given.parameters.tensors) if not p.requires_grad]
    if off and len(off) < len(seen.given.parameters.tensors):
        yield Caution(
            "care",
            "frozen parameters (requires_grad=False) were passed",
            _names(seen, off),
            "leave them out of params, unless their curvature is wanted, too",
        )


def _precision(seen: Observation) -> Iterator[Caution]:
    tensors = seen.given.parameters.tensors
    dtypes = sorted({str(p.dtype)[6:] for p in tensors})
    if len(dtypes) > 1:
        yield Caution(
            "care",
            "parameters of several types",
            tuple(dtypes),
            f"products come in {str(seen.given.parameters.dtype)[6:]}, as accurate as the "
            "coarsest of them; model.float() makes one of it",
        )
    half = [i for i, p in enumerate(tensors) if p.itemsize < 4]
    if half:
        yield Caution(
            "care",
            "half-precision parameters",
            _names(seen, half),
            "products have two or three digits: copy.deepcopy(model).float() for "
            "eigenvalues and linear systems",
        )
    device = seen.given.parameters.device.type
    if torch.is_autocast_enabled(device):
        yield Caution(
            "care",
            "automatic mixed precision is on",
            (f"torch.autocast({device!r})",),
            "leave the autocast context to compute curvature",
        )


def _not_finite(seen: Observation) -> Iterator[Caution]:
    tensors = seen.given.parameters.tensors
    bad = [i for i, p in enumerate(tensors) if not _is_finite(p)]
    where = [*_names(seen, bad)]
    X, y = seen.sample.batch
    where += [
        what
        for what, part in (("inputs", X), ("targets", y))
        if not all(_is_finite(t) for t in nested.tensors(part))
    ]
    where += seen.not_finite
    if where:
        yield Caution(
            "stop",
            "values that are not finite",
            tuple(where),
            "look for NaN or infinite entries, or a logarithm, root or quotient at zero",
        )


def _names(seen: Observation, positions: Iterable[int]) -> tuple[str, ...]:
    """Names of parameters, or else their positions."""
    names = seen.given.parameters.names
    return tuple(f"params[{i}]" if names is None else names[i] for i in positions)


def _is_finite(t: Tensor) -> bool:
    return bool(t.detach().isfinite().all())


GRAVITY = {"stop": 0, "care": 1, "note": 2}


def cautions(
    seen: Observation, forecasts: tuple[Forecast, ...], is_gradient: bool | None
) -> tuple[Caution, ...]:
    """What the rules find, the gravest first."""
    found = [
        *_reduction(seen),
        *_data(seen),
        *_fails(seen),
        *_dropout(seen),
        *_batch_norm(seen),
        *_wrong_backward(seen, forecasts, is_gradient),
        *_custom(seen),
        *_attention(seen),
        *_written(seen),
        *_wrapped(seen),
        *_not_finite(seen),
        *_precision(seen),
        *_unused(seen),
        *_frozen(seen),
        *_tied(seen),
    ]
    return tuple(sorted(found, key=lambda c: GRAVITY[c.severity]))
