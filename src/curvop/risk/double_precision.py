"""The same model, loss and batch in double precision; closures are copied."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from curvop.autograd import within
from curvop.risk import nested
from curvop.risk.losses import Loss, as_loss
from curvop.risk.parameters import Parameters, as_parameters, constant, in_double, unwrapped
from curvop.risk.substitution import modules_in

VECTORS = 10  # of the size of the parameters that a proof takes: leaves, products, …
# Errors where no copy can be made, or where it fails.
NO_COPY = (MemoryError, RuntimeError, TypeError, ValueError, AttributeError)
SHARE = 0.5  # of the free memory, to be taken at most


@dataclass(frozen=True)
class Source:
    """What the user passed.

    Attributes:
        model: The model.
        loss: The loss, if there is one.
        reduction: The argument ``reduction``.
    """

    model: Any
    loss: Any = None
    reduction: Any = None


def doubled(
    source: Source, at: Parameters, X: Any, y: Any
) -> tuple[Parameters, Loss | None, Any, Any]:
    """Parameters, loss and a batch, in double precision.

    The user's objects are not changed: parameters and buffers are converted when they are
    used; a closure is copied with the tensors that it refers to.

    Raises:
        MemoryError: If there is too little memory.
        RuntimeError: If a copy computes something else, or with other parameters.
    """
    inputs, targets = (nested.map_tensors(in_double, part) for part in (X, y))
    parameters, loss = at, source.loss  # InDouble: the model may still ask for less
    if any(p.dtype != torch.float64 for p in at.tensors):
        check_memory(at)
        if at.doubled is not None:
            parameters, loss = at.doubled(), _cast(source.loss)
        else:
            parameters, loss = _copied(source, at)
    there = replace(parameters, model=within(InDouble, parameters.model))
    if parameters is not at and at.doubled is None:
        _check(there, inputs, at, X)
    understood = None if loss is None else _all_double(as_loss(loss, source.reduction))
    return there, understood, inputs, targets


def _all_double(loss: Loss) -> Loss:
    return replace(
        loss,
        total=within(InDouble, loss.total),
        terms=None if loss.terms is None else within(InDouble, loss.terms),
        divisor=within(InDouble, loss.divisor),
    )


def _cast(loss: Any) -> Any:
    """A loss with its weights in double precision."""
    if isinstance(loss, nn.Module):
        return copy.deepcopy(loss).double()
    if isinstance(loss, functools.partial):
        args = [nested.map_tensors(in_double, a) for a in loss.args]
        keywords = {k: nested.map_tensors(in_double, a) for k, a in loss.keywords.items()}
        return functools.partial(loss.func, *args, **keywords)
    return loss


class InDouble(TorchFunctionMode):
    """Context in which calls that ask for lower precision give double precision.

    A model may name a type (``x.float()``), or have a constant of a lower precision.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call with double numbers."""
        kwargs = kwargs or {}
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        if any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
            args = [_wide(a) for a in args]
            kwargs = {key: _wide(a) for key, a in kwargs.items()}
        try:
            return func(*args, **kwargs)
        except RuntimeError:  # from operands of two types
            tensors = list(nested.tensors((args, kwargs)))
            if all(t is in_double(t) for t in tensors):
                raise
            args, kwargs = (nested.map_tensors(in_double, a) for a in (args, kwargs))
            return func(*args, **kwargs)


def _wide(a: Any) -> Any:
    is_real = isinstance(a, torch.dtype) and a.is_floating_point
    return torch.float64 if is_real else a


def check_memory(parameters: Parameters) -> None:
    """Refuse a copy in double precision that would take too much memory.

    Raises:
        MemoryError: If it does not.
    """
    needed = VECTORS * 8 * sum(p.numel() for p in parameters.tensors)
    free = _free_bytes(parameters.device)
    if free is not None and needed > SHARE * free:
        raise MemoryError(
            f"it would take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


def _free_bytes(device: torch.device) -> int | None:
    """Free memory, if the system reports it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")  # Linux
    if device.type != "cpu" or not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _copied(source: Source, at: Parameters) -> tuple[Parameters, Any]:
    """Copies of a closure and its loss, over copies of the parameters."""
    leaves = [constant(p).clone().double().requires_grad_() for p in at.tensors]
    memo = {id(p): q for p, q in zip(at.tensors, leaves, strict=True)}
    function = source.model
    function = unwrapped(function) if isinstance(function, nn.Module) else function
    function, loss = duplicate(function, memo), duplicate(source.loss, memo)
    for module in (*modules_in(function), *modules_in(loss)):
        module.double()
    return as_parameters(function, leaves, loss), loss


def _check(copy: Parameters, inputs: Any, at: Parameters, X: Any) -> None:
    """The copy must be the same function of the parameters.

    Raises:
        RuntimeError: If it is not.
    """
    with torch.enable_grad(), at.leaves() as params:
        expected = nested.differentiable(at.model(params, X))
        is_used = any(o.requires_grad for o in expected)
    with torch.enable_grad(), copy.leaves() as params:
        got = nested.differentiable(copy.model(params, inputs))
        moving = [o.sum() for o in got if o.requires_grad]
        slopes = torch.autograd.grad(moving, params, allow_unused=True) if moving else ()
    if is_used and all(s is None for s in slopes):
        raise RuntimeError("the copy does not compute with the copied parameters")
    if [o.shape for o in got] != [o.shape for o in expected]:
        raise RuntimeError("the copy predicts in another form")


def duplicate(x: Any, memo: dict[int, Any]) -> Any:
    """A deep copy, of functions as well, which ``copy.deepcopy`` does not copy.

    Args:
        x: A module, callable or object.
        memo: Copies that exist already, by the identity of the original.
    """
    if id(x) in memo:
        return memo[id(x)]
    if isinstance(x, FunctionType):
        return _function(x, memo)
    if isinstance(x, functools.partial):
        args = [duplicate(a, memo) for a in x.args]
        keywords = {key: duplicate(value, memo) for key, value in x.keywords.items()}
        return functools.partial(duplicate(x.func, memo), *args, **keywords)
    if type(x) in (list, tuple, set):
        return type(x)(duplicate(value, memo) for value in x)
    if type(x) is dict:
        return {key: duplicate(value, memo) for key, value in x.items()}
    return copy.deepcopy(x, memo)


def _function(f: FunctionType, memo: dict[int, Any]) -> Any:
    """The function with copies of what it refers to; torch's functions unchanged."""
    if _package(f) == "torch":
        return f
    cells = f.__closure__ or ()
    new = tuple(CellType() for _ in cells)
    scope = dict(f.__globals__)
    g = FunctionType(f.__code__, scope, f.__name__, None, new)
    memo[id(f)] = g  # before its contents, which may refer to it
    g.__defaults__, g.__module__ = duplicate(f.__defaults__, memo), f.__module__
    g.__kwdefaults__ = duplicate(f.__kwdefaults__, memo)
    for cell, old in zip(new, cells, strict=True):
        cell.cell_contents = duplicate(old.cell_contents, memo)
    for name, value in inspect.getclosurevars(f).globals.items():
        is_ours = isinstance(value, FunctionType) and _package(value) == _package(f)
        if is_ours or isinstance(value, Tensor | nn.Module | list | tuple | dict):
            scope[name] = duplicate(value, memo)
    return g


def _package(f: FunctionType) -> str:
    return str(f.__module__).split(".")[0]
