"""Products by plain autograd in double precision, checked by finite differences.

Nothing of the library's own products is used. Double backward is what it claims to be only
where every backward pass can itself be differentiated: a custom function may break that
without an error. Central differences of the gradient need first derivatives alone, so
they decide, where they converge and the gradient is that of the loss.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from curvop.curvature import nested
from curvop.curvature.groups import grouped
from curvop.curvature.kernels import differentiable_kernels
from curvop.curvature.probing import probe, tolerance
from curvop.curvature.randomness import preserved
from curvop.curvature.replica import Replica
from curvop.inspection.differences import Evaluate, converged, flat
from curvop.inspection.results import Matrix, Method, Reference, first_line

AGREE = 1e-4  # relative difference of autograd and finite differences that is rounding


@dataclass(frozen=True)
class Derivative:
    """A directional derivative.

    Attributes:
        value: The derivative, flat.
        method: How it was found.
        doubt: Why autograd is not what it was found by, or not confirmed.
    """

    value: Tensor
    method: Method
    doubt: str | None = None


DISAGREES = "double backward disagrees with finite differences of first derivatives"
UNCLEAR = "finite differences do not converge (a kink or a jump near by?)"
STOPPED = "the gradient is not that of the loss: double backward is taken at its word"


@final
class Truth:
    """The three matrices of one batch, multiplied onto a vector.

    Args:
        problem: A copy of the problem, in double precision.
    """

    def __init__(self, problem: Replica) -> None:
        self._problem = problem
        self.dtype = problem.leaves[0].dtype
        self.gradient_is_right = self._compare_gradient()

    def product(self, matrix: Matrix, v: Tensor) -> tuple[Tensor, Reference]:
        """The matrix times ``v``, both flat.

        Raises:
            Exception: Whatever the model, the loss or autograd raises.
        """
        products = {"Hessian": self._hessian, "GGN": self._ggn, "EF": self._ef}
        with self._as_found():
            value, steps = products[matrix](v)
        doubts = [s.doubt for s in steps if s.doubt is not None]
        methods = [s.method for s in steps if s.method == "finite differences"]
        method: Method = methods[0] if methods else "double backward"
        doubt = doubts[0] if doubts else None
        return value, Reference(matrix, method, str(value.dtype)[6:], doubt)

    def accuracy(self, reference: Reference) -> float:
        """Relative error that a product may have itself."""
        by_differences = AGREE if reference.method == "finite differences" else 0.0
        return max(by_differences, tolerance(self.dtype))

    def scale(self, v: Tensor) -> float:
        """What a product with ``v`` is of the order of: ``‖∇L‖ ‖v‖ / ‖θ‖``."""
        with self._as_found():
            g = self._gradient()
        size = flat(self._problem.leaves).detach().norm().clamp(1e-9)
        return float(g.norm() * v.norm() / size)

    # --------------------------------------------------------------- the matrices

    def _hessian(self, v: Tensor) -> tuple[Tensor, list[Derivative]]:
        """``∇²L v``."""
        found = self._derivative(
            lambda: self._pulled(self._gradient(keep=True), v), self._gradient, v
        )
        return found.value, [found]

    def _ggn(self, v: Tensor) -> tuple[Tensor, list[Derivative]]:
        """``Jᵀ ∇²_f L J v``."""
        p = self._problem
        Jv = self._derivative(
            lambda: self._pushed(self._prediction, v), self._prediction, v
        )
        at = p.predict()
        parts = [t.detach().clone().requires_grad_() for t in nested.differentiable(at)]

        def slope(keep: bool = False) -> Tensor:
            loss = p.loss(nested.refill(at, parts), p.y)
            return flat(_slopes(loss, parts, keep))

        u = Jv.value
        Bu = _differentiated(
            lambda: flat(_slopes(slope(keep=True), parts, False, u)), slope, parts, u
        )
        product = flat(_slopes(self._prediction(), p.leaves, False, Bu.value))
        return product, [Jv, Bu]

    def _ef(self, v: Tensor) -> tuple[Tensor, list[Derivative]]:
        """``Σ gₙ gₙᵀ v / Z``."""
        p = self._problem
        terms = unreduced(p.loss)

        def evaluate() -> Tensor:
            prediction = p.predict()
            return grouped(terms(prediction, p.y), prediction, "output", 0).flatten()

        Jv = self._derivative(lambda: self._pushed(evaluate, v), evaluate, v)
        total = evaluate()
        loss = p.loss(p.predict(), p.y)
        Z = (total.sum() / loss).detach() if bool(loss) else total.new_tensor(1.0)
        return flat(_slopes(total, p.leaves, False, Jv.value)) / Z, [Jv]

    # ----------------------------------------------------------------- the pieces

    @contextmanager
    def _as_found(self) -> Iterator[None]:
        device = self._problem.leaves[0].device
        with (
            preserved(device),
            torch.inference_mode(False),
            torch.enable_grad(),
            differentiable_kernels(),
        ):
            yield

    def _loss(self) -> Tensor:
        value: Tensor = self._problem.loss(self._problem.predict(), self._problem.y)
        return value

    def _gradient(self, keep: bool = False) -> Tensor:
        return flat(_slopes(self._loss(), self._problem.leaves, keep))

    def _prediction(self) -> Tensor:
        return flat(nested.differentiable(self._problem.predict()))

    def _pulled(self, outputs: Tensor, u: Tensor) -> Tensor:
        return flat(_slopes(outputs, self._problem.leaves, False, u))

    def _pushed(self, evaluate: Evaluate, v: Tensor) -> Tensor:
        """``J v`` as the derivative of ``u ↦ Jᵀ u``."""
        outputs = evaluate()
        u = torch.zeros_like(outputs).requires_grad_()
        Jt_u = flat(_slopes(outputs, self._problem.leaves, True, u))
        return flat(_slopes(Jt_u, [u], False, v))

    def _derivative(
        self, by_autograd: Evaluate, evaluate: Evaluate, v: Tensor
    ) -> Derivative:
        trust = self.gradient_is_right is False
        return _differentiated(by_autograd, evaluate, self._problem.leaves, v, trust)

    def _compare_gradient(self) -> bool | None:
        """Whether the gradient is that of the loss; ``None`` where this is not clear."""
        with self._as_found():
            g = self._gradient()
            if not bool(g.isfinite().all()) or not bool(g.any()):
                return None
            # along the gradient, where it shows, and along all that it may leave out
            (u,) = probe([g])
            u = g / g.norm() + u / u.norm()
            found = converged(lambda: self._loss().detach()[None], self._problem.leaves, u)
        if found is None:
            return None
        distance = float((found.value - g @ u).abs())
        return distance <= max(AGREE * float(g.norm()), found.error)


def _differentiated(
    by_autograd: Evaluate,
    evaluate: Evaluate,
    at: Sequence[Tensor],
    v: Tensor,
    trust: bool = False,
) -> Derivative:
    """A directional derivative by autograd, or by differences where that is wrong.

    Args:
        by_autograd: The derivative along ``v``.
        evaluate: The function.
        at: Where it is differentiated.
        v: The direction, flat.
        trust: Whether autograd is right by definition: the model stops gradients.

    Raises:
        Exception: What autograd raises, where differences do not converge either.
    """
    try:
        value = by_autograd().detach()
    except Exception as error:
        differences = converged(evaluate, at, v)
        if differences is None:
            raise
        return Derivative(differences.value, "finite differences", first_line(error))
    if trust:
        return Derivative(value, "double backward", STOPPED)
    differences = converged(evaluate, at, v)
    if differences is None or not bool(value.isfinite().all()):
        return Derivative(value, "double backward", UNCLEAR)
    bound = max(AGREE * float(differences.value.norm()), differences.error)
    if float((value - differences.value).norm()) > bound:
        return Derivative(differences.value, "finite differences", DISAGREES)
    return Derivative(value, "double backward")


def unreduced(loss: Any) -> Callable[[Any, Any], Tensor]:
    """The same loss with ``reduction="none"``."""
    if isinstance(loss, nn.Module):
        other = copy.copy(loss)
        other.__dict__["reduction"] = "none"
        return other
    return functools.partial(loss, reduction="none")


def _slopes(
    output: Tensor, inputs: Sequence[Tensor], keep: bool, u: Tensor | None = None
) -> tuple[Tensor, ...]:
    """``Jᵀ u``; zero where nothing depends."""
    if not output.requires_grad:
        return tuple(torch.zeros_like(t) for t in inputs)
    return torch.autograd.grad(
        output,
        inputs,
        torch.ones_like(output) if u is None else u,
        create_graph=keep,
        allow_unused=True,
        materialize_grads=True,
    )
