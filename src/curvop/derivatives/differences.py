"""Differences of first derivatives: the way that relies on no second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvop.autograd import column_vjp, gradient
from curvop.derivatives.columns import ChunkSize, apply_each
from curvop.derivatives.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Differentiation,
    Middle,
    only_tensor,
)
from curvop.operators import Blocks, norm
from curvop.risk import Parameters, constant, in_graph, preserved

# Lengths of a step relative to 1 + ‖θ‖. The longest is best for a smooth function; shorter
# ones may stay clear of a kink that is near.
STEPS = {
    torch.float64: (1e-5, 1e-6, 1e-7, 1e-8, 1e-9),
    torch.float32: (1e-2, 3e-3, 1e-3),
}
ENOUGH = {torch.float64: 3e-9, torch.float32: 1e-4}  # relative error to stop at
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative error to refuse from
SMALL = 1e-3  # times the order of a derivative: a smaller one is rounding

At = Callable[[Parameters], Blocks]  # a function of the parameters


class InaccurateError(RuntimeError):
    """Differences do not converge to a derivative."""


@final
class Differences(Differentiation):
    r"""Products by central differences of first derivatives.

    .. math:: H v ≈ \frac{g(θ + h v) - g(θ - h v)}{2 h}, \qquad
        J v ≈ \frac{f(θ + h v) - f(θ - h v)}{2 h}

    For every model that can be trained. Two lengths of a step give a value without the
    error of order ``h²`` (Richardson extrapolation), and their difference estimates its
    error; if a kink lies within a step, shorter ones are taken. At a kink itself, all
    lengths give the mean of both one-sided derivatives; the error is then their difference.

    Args:
        single: Length of the only step to take, in double precision, relative to
            ``1 + ‖θ‖``: enough to confirm the product of another way, its error is not
            known. By default as many steps as are needed.

    Attributes:
        error: Largest estimated relative error of the products so far.
    """

    name = "differences"

    def __init__(self, single: float | None = None) -> None:
        self.error = 0.0 if single is None else math.nan
        self._single = single

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """Differences of the gradient."""
        nearby: list[Aux] = []

        def slope(there: Parameters) -> Blocks:
            with torch.enable_grad(), there.leaves() as params:
                outputs, aux = f(params)
                nearby[:] = [aux]
                loss = only_tensor(in_graph(outputs, at))
                return gradient(loss, params, create_graph=False)

        product = apply_each(lambda v: self.derivative(slope, at, v), V)
        return product, nearby[0] if self._single else _values(f, at)[1]

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``J`` by differences of the outputs, ``Jᵀ`` by reverse mode."""
        U = self.jvp(f, at, V, chunk)
        with torch.enable_grad(), at.leaves() as params:
            outputs, on_the_way = f(params)
            outputs = in_graph(outputs, at)
            W, aux = middle(tuple(o.detach() for o in outputs), U)
            product = apply_each(lambda w: column_vjp(outputs, params, w), W)
            return product, (*on_the_way, *aux)

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """Differences of the outputs."""
        return apply_each(
            lambda v: self.derivative(lambda there: list(_values(f, there)[0]), at, v), V
        )

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ`` by reverse mode: a first derivative."""
        with torch.enable_grad(), at.leaves() as params:
            outputs = in_graph(f(params)[0], at)
            return apply_each(lambda u: column_vjp(outputs, params, u), U(outputs))

    def derivative(self, f: At, at: Parameters, v: Blocks) -> Blocks:
        """``df(θ + t v)/dt`` at ``t = 0`` for one column ``[1, *n_i]``.

        Raises:
            InaccurateError: If no two steps agree.
        """
        length = norm(v)
        if length == 0 or not math.isfinite(length):
            return [(0 * length) * b[None] for b in self._at(f, at, v, 0.0)]
        dtype = at.tensors[0].dtype
        dtype = dtype if dtype in STEPS else torch.float32
        size = 1 + norm(at.tensors)
        if self._single is not None:
            h = self._single * size / length
            plus, minus = (self._at(f, at, v, s) for s in (h, -h))
            return [p.sub_(m).div_(2 * h)[None] for p, m in zip(plus, minus, strict=True)]
        here = self._at(f, at, v, 0.0)
        best: Blocks = []
        error, before, bend_before, ratio = math.inf, best, best, 0.0
        for e in STEPS[dtype]:
            h = e * size / length
            plus, minus = (self._at(f, at, v, s) for s in (h, -h))
            order = norm(plus) * length / size  # of magnitude of the derivative
            sides = zip(plus, minus, here, strict=True)
            bend = [((p - c) + (m - c)).div_(2 * h) for p, m, c in sides]
            now = [p.sub_(m).div_(2 * h) for p, m in zip(plus, minus, strict=True)]
            if before:
                r = ratio / e
                change = [a - b for a, b in zip(now, before, strict=True)]
                # curvature contributes in proportion to the step: the rest is a kink at θ
                kink = [
                    (r * a - b) / (r - 1) for a, b in zip(bend, bend_before, strict=True)
                ]
                scale = max(norm(now), SMALL * order)
                worst = max(norm(change), norm(kink))
                off = worst / scale if scale else 0.0
                if not best or off < error:
                    c = 1 / (r**2 - 1)  # of the error of order h²
                    best = [b + c * d for b, d in zip(now, change, strict=True)]
                    error = off
                if error <= ENOUGH[dtype]:
                    break
            before, bend_before, ratio = now, bend, e
        if not error <= LIMIT[dtype]:
            advice = "" if dtype is torch.float64 else "; convert to float64"
            raise InaccurateError(
                f"differences of first derivatives do not converge in {str(dtype)[6:]} "
                f"(steps, or sides, differ by {error:.0e}: is there a kink?){advice}"
            )
        self.error = max(self.error, error)
        return [b[None] for b in best]

    def _at(self, f: At, at: Parameters, v: Blocks, h: float) -> Blocks:
        """``f(θ + h v)``, with the same dropout for every ``h``."""
        start = [constant(p) for p in at.tensors]
        with preserved(at.device), at.moved([b[0] for b in v], h) as there:
            pairs = zip(there.tensors, start, strict=True)
            with _HeldPadding({t.data_ptr(): p for t, p in pairs}):
                return _apart([b.detach() for b in f(there)])


def _apart(blocks: Blocks) -> Blocks:
    """Blocks that can be written to: autograd may return the same tensor twice."""
    seen: set[int] = set()
    apart = []
    for b in blocks:
        address = b.untyped_storage().data_ptr()
        apart.append(b.clone() if address in seen else b)
        seen.add(address)
    return apart


def _values(f: Differentiable, at: Parameters) -> tuple[tuple[Tensor, ...], Aux]:
    with torch.no_grad():
        return f([constant(p) for p in at.tensors])


class _HeldPadding(TorchFunctionMode):
    """The padding row of an embedding does not move: autograd treats it as a constant.

    Args:
        held: The values before the step, by the address of those after it.
    """

    def __init__(self, held: dict[int, Tensor]) -> None:
        super().__init__()
        self._held = held

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is not F.embedding or kwargs.get("padding_idx") is None:
            return out
        tokens, weight = args
        row = kwargs["padding_idx"] % len(weight)
        held = self._held.get(weight.data_ptr(), weight)[row]
        return torch.where((tokens == row)[..., None], held, out)
