"""The layer, function or custom function whose derivative is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, resolve_name

from curvop.derivatives import (
    Aux,
    Differences,
    Differentiable,
    Outputs,
    RiskDifferentiation,
)
from curvop.operators import Blocks, probe
from curvop.risk import Parameters, constant, nested, preserved

WRONG = 1e-5  # relative error of one function's derivative in double precision
Kind = Literal["hessian", "jvp"]


@dataclass(frozen=True)
class Call:
    """A call of a function in the forward pass.

    Attributes:
        name: Name of the function.
        where: The layer that called it; empty outside of layers.
        function: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    name: str
    where: str
    function: Callable[..., Any]
    args: Any
    kwargs: Any


def culprit(
    way: RiskDifferentiation,
    risk: Differentiable,
    at: Parameters,
    kinds: Sequence[Kind],
) -> str:
    """Name the function that a way differentiates wrongly.

    Each function that the forward pass calls is differentiated alone and compared with
    differences. Custom functions appear only in autograd's graph: they are named if no
    function of torch is at fault, with the innermost layer whose derivative is wrong.

    Args:
        way: The way.
        risk: The scalar function that was differentiated.
        at: The parameters, in double precision.
        kinds: Which derivatives are needed.

    Returns:
        For instance ``"custom function Square in layer '1' (Odd)"``; empty if none is
        found.
    """
    noted = _Noted()
    with torch.enable_grad(), at.leaves() as params, _layers(noted), noted:
        out = risk(params)[0]
    for call in noted.calls:
        if _is_wrong(way, call, kinds, at.device):
            return f"{call.name}{_in(call.where)}"
    custom = _custom_functions(out)
    if not custom:
        return ""
    for layer, inside in noted.layers:
        if _is_wrong(way, layer, kinds, at.device):
            return f"custom function {' or '.join(inside)}{_in(layer.where)}"
    innermost = noted.layers[0][0].where if noted.layers else ""
    return f"custom function {' or '.join(custom)}{_in(innermost)}"


def _in(where: str) -> str:
    return f" in layer {where}" if where else ""


@dataclass
class _Noted(TorchFunctionMode):
    """Calls of functions and layers, in their order.

    Attributes:
        calls: Functions of torch.
        layers: Layers, inner ones first, with the custom functions inside each.
        stack: The layers that are running.
    """

    calls: list[Call] = field(default_factory=list)
    layers: list[tuple[Call, tuple[str, ...]]] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note the call, with its arguments as they were before it."""
        kwargs = kwargs or {}
        held = _held(args), _held(kwargs)
        out = func(*args, **kwargs)
        # no gradients: inside of a custom function, or detached
        moves = torch.is_grad_enabled() and isinstance(out, Tensor | tuple | list)
        if moves and any(t.requires_grad for t in nested.tensors(out)):
            name = resolve_name(func) or getattr(func, "__name__", str(func))
            where = self.stack[-1] if self.stack else ""
            self.calls.append(Call(_short(name), where, func, *held))
        return out


def _held(x: Any) -> Any:
    """Copies, which an in-place call does not change, with their ``requires_grad``."""

    def copied(t: Tensor) -> Tensor:
        return constant(t).clone().requires_grad_(t.requires_grad)

    return nested.map_tensors(copied, x)


def _short(name: str) -> str:
    return name.replace("torch.nn.functional.", "F.").replace("torch._C._nn.", "F.")


@contextmanager
def _layers(noted: _Noted) -> Iterator[None]:
    """Note all layers that are called in this thread."""
    thread = threading.get_ident()
    names: dict[int, str] = {}

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() != thread:
            return
        if id(module) not in names:
            for name, m in module.named_modules():
                names[id(m)] = (
                    f"{name!r} ({type(m).__name__})" if name else type(m).__name__
                )
        noted.stack.append(names[id(module)])

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if threading.get_ident() != thread:
            return
        where = noted.stack.pop()
        inputs = [t.grad_fn for t in nested.tensors(args)]
        inside = _custom_functions(out, {f for f in inputs if f is not None})
        if inside:
            call = Call(type(module).__name__, where, module, _held(args), {})
            noted.layers.append((call, inside))

    handles = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _custom_functions(outputs: Any, until: Iterable[Any] = ()) -> tuple[str, ...]:
    """Names of the custom functions in the graph of some outputs."""
    todo: list[Any] = [t.grad_fn for t in nested.tensors(outputs) if t.grad_fn is not None]
    seen, found = set(until), dict[str, None]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found[type(node).__name__.removesuffix("Backward")] = None
        todo += [parent for parent, _ in node.next_functions]
    return tuple(found)


def _is_wrong(
    way: RiskDifferentiation, call: Call, kinds: Sequence[Kind], device: torch.device
) -> bool:
    """Whether a way's derivative of one function differs from that of differences."""
    moving = [
        t
        for t in nested.tensors((call.args, call.kwargs))
        if t.requires_grad and t.is_floating_point()
    ]
    if not moving or any(t.dtype != torch.float64 for t in moving):
        return False
    position = {id(t): i for i, t in enumerate(moving)}

    def outputs(values: Sequence[Tensor]) -> Outputs:
        def value(t: Tensor) -> Tensor:
            i = position.get(id(t))
            # an in-place function writes to a copy
            return constant(t).clone() if i is None else values[i].clone()

        args, kwargs = (nested.map_tensors(value, a) for a in (call.args, call.kwargs))
        out = call.function(*args, **kwargs)
        return tuple(t for t in nested.tensors(out) if t.is_floating_point())

    def f(values: Sequence[Tensor]) -> tuple[Outputs, Aux]:
        return outputs(values), ()

    def total(values: Sequence[Tensor]) -> tuple[Outputs, Aux]:
        outs = outputs(values)
        c = probe([o.detach() for o in outs])
        return (
            torch.stack([(a * o).sum() for a, o in zip(c, outs, strict=True)]).sum(),
        ), ()

    at = Parameters(
        tuple(constant(t) for t in moving), None, lambda p, X: p, functional=True
    )
    V = probe([t.detach().expand(2, *t.shape) for t in moving])
    for kind in kinds:

        def product(by: Any, columns: Blocks, kind: Kind = kind) -> Blocks:
            with preserved(device):
                if kind == "jvp":
                    return list(by.jvp(f, at, columns, None))
                return list(by.hessian(total, at, columns, None)[0])

        try:
            right = product(Differences(), [v[:1] for v in V])
            got = product(way, V), product(way, [v[:1] for v in V])
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            continue
        order = max(_size(right), 1e-3 * _size(list(at.tensors)), 1e-8)
        for columns in got:
            off = [a[:1] - b for a, b in zip(columns, right, strict=True)]
            if not _size(off) <= WRONG * order:
                return True
    return False


def _size(blocks: Blocks) -> float:
    return max(float(b.detach().abs().max()) for b in blocks if b.numel())
