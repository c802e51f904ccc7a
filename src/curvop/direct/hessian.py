"""The Hessian of a chain network on one batch, which can be inverted directly."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from curvop.autograd import differentiable_kernels
from curvop.derivatives import leading, trailing
from curvop.direct.block_elimination import factorise
from curvop.direct.inverse import ChainInverseLinearOperator
from curvop.direct.loss import expanded_loss, refuse_parameters
from curvop.direct.memory import check_memory, physical_memory
from curvop.direct.newton_system import NewtonSystem, newton_system
from curvop.direct.sequential import activations, first_not_finite, layers_of
from curvop.operators import Blocks, LinearOperator, SingularSystemError, Space
from curvop.risk import nested, preserved


@final
class ChainHessianLinearOperator(LinearOperator):
    r"""The Hessian of a chain network's loss on one batch, ready to be inverted.

    .. math:: H = ∇²_θ \, ℓ(f_L(⋯ f_2(f_1(X; θ_1); θ_2) ⋯; θ_L), y)

    The system ``(H + εI) x = b`` is solved exactly, in time linear in the depth ``L`` and
    without forming ``H``: it is the Newton system of an optimal control problem, and a
    block elimination takes out its parameters layer by layer. The pivots also give the
    number of negative eigenvalues and the log-determinant. For ``n`` samples and linear
    layers of width ``w`` a layer costs about ``5 (nw)³`` operations and keeps
    ``2 (nw)²`` numbers (fewer for ``n > w``): the method is for small batches and
    narrow layers, ``n·w`` well below the number of parameters.

    That the Hessian of deep networks is easy to invert was found by Rahimi ("The Hessian
    of tall-skinny networks is easy to invert", arXiv 2601.06096), by a block-tridiagonal
    system; the sweep is that of Dunn & Bertsekas ("Efficient dynamic programming
    implementations of Newton's method for unconstrained optimal control problems", 1989)
    and Pantoja ("Differential dynamic programming and Newton's method", 1988), here with
    delayed pivots.

    The modules of the ``nn.Sequential`` are its layers. ``nn.Linear``, elementwise
    activations and reshapes are structured; any other module of one input is
    differentiated into dense matrices. Everything is computed in double precision, for
    models of every dtype. The derivatives are taken at construction, and do not follow
    later changes of the parameters.

    Args:
        model: The chain. Frozen parameters are constants. It is not changed.
        loss_func: A torch loss module, or a callable ``(prediction, y) -> scalar``.
        X: The inputs of the batch, one tensor ``[n, ...]``.
        y: The targets: a tensor, or a nest of tensors.
        curvature: ``"hessian"``, or ``"ggn"`` for the Gauss-Newton matrix.
        memory_limit: Bytes that derivatives and factors of one inverse may take, as
            predicted from the shapes; by default all memory of the device.

    Raises:
        TypeError: If the model is not a plain ``nn.Sequential``, a stage does not map one
            tensor to one tensor, or something is of the wrong kind or dtype.
        ValueError: If a parameter is used twice, running statistics are updated, the loss
            is not a finite scalar, something is on another device, or the factors would
            exceed the memory limit.
        NonDeterministicError: If a stage is random.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    >>> X, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    >>> H = ChainHessianLinearOperator(model, nn.MSELoss(), X, y)
    >>> b = torch.ones(H.shape[1]).double()
    >>> inverse = H.inverse(0.1)
    >>> x = inverse @ b
    >>> torch.testing.assert_close(H @ x + 0.1 * x, b)
    """

    def __init__(
        self,
        model: nn.Sequential,
        loss_func: Callable[[Any, Any], Tensor],
        X: Tensor,
        y: Any,
        *,
        curvature: Literal["hessian", "ggn"] = "hessian",
        memory_limit: int | None = None,
    ) -> None:
        if curvature not in ("hessian", "ggn"):
            raise ValueError(f"Expected 'hessian' or 'ggn', got {curvature!r}.")
        if not callable(loss_func):
            raise TypeError(
                "Expected a loss: a torch loss module or a callable (prediction, y) -> "
                f"scalar, got {type(loss_func).__name__}."
            )
        layers = layers_of(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        sample = next(iter(trained.values()))
        _check_batch(X, y, sample)
        limit = _limit(memory_limit, sample.device)
        with (
            preserved(sample.device),
            torch.inference_mode(False),
            differentiable_kernels(),
        ):
            Z = activations(layers, X)
            culprit = first_not_finite(layers, Z)
            first = next(i for i, layer in enumerate(layers) if layer.parameters)
            layers, Z = layers[first:], Z[first:]
            check_memory(layers, Z, limit)
            refuse_parameters(loss_func, trained, Z[-1], y)
            loss = expanded_loss(loss_func, Z[-1], y, culprit)
            is_hessian = curvature == "hessian"
            self._system = newton_system(
                layers, Z, loss, is_hessian=is_hessian, memory_limit=limit
            )
        space = Space(tuple(p.shape for p in trained.values()), tuple(trained))
        super().__init__(
            space,
            space,
            dtype=sample.dtype,
            device=sample.device,
            symmetric=True,
            psd=not is_hessian and loss.is_convex,
        )

    def inverse(
        self, damping: float, *, refine: int = 1, rtol: float | None = 1e-6
    ) -> ChainInverseLinearOperator:
        """``(H + damping · I)⁻¹``, factored; the derivatives are used again.

        Args:
            damping: Any finite number ``ε``, also negative, as a shift. It may be 0 if the
                batch is large enough for ``H`` to have no null space.
            refine: Steps of iterative refinement of each solution.
            rtol: Largest relative residual ``‖b − (H + εI) x‖ / ‖b‖`` of a column that
                is accepted; ``None`` for any.

        Returns:
            A symmetric operator with ``logabsdet()``, ``num_negative()`` and
            ``nbytes()``. Its products raise :class:`SingularSystemError` where the
            residual exceeds ``rtol``.

        Raises:
            TypeError: If an argument is not a number.
            ValueError: If one is out of range.
            SingularSystemError: If ``H + εI`` is singular.
        """
        _check_number("a damping", damping)
        if not isinstance(refine, Integral) or isinstance(refine, bool) or refine < 0:
            raise ValueError(f"Expected a number of refinements, got {refine!r}.")
        if rtol is not None:
            _check_number("rtol", rtol)
            if rtol <= 0:
                raise ValueError(f"Expected a positive rtol, or None, got {rtol}.")
        return ChainInverseLinearOperator(
            self._system,
            self.input_space,
            float(damping),
            refine=int(refine),
            rtol=rtol,
            dtype=self.dtype,
        )

    def smallest_eigenvalue(self, *, tol: float = 1e-10) -> float:
        """The smallest eigenvalue, by bisection on the number of negative pivots.

        It uses no Krylov space, so that the value cannot be missed, however close others
        are. Takes a factorisation for each halving, about ``log₂(1 / tol)``.

        Args:
            tol: Largest error, relative to the spectral norm.

        Raises:
            TypeError: If ``tol`` is not a number.
            ValueError: If it is not positive.
        """
        _check_number("tol", tol)
        if tol <= 0:
            raise ValueError(f"Expected a positive tol, got {tol}.")
        norm = _norm(self._system)
        if norm == 0:
            return 0.0
        low, high = -norm, norm
        while _has_below(self._system, low):
            low *= 2
        while not _has_below(self._system, high):
            high *= 2
        while high - low > max(tol, 1e-15) * norm:
            middle = (low + high) / 2
            if _has_below(self._system, middle):
                high = middle
            else:
                low = middle
        return (low + high) / 2

    def _matmat(self, M: Blocks) -> Blocks:
        Hx = self._system.product(self._system.pack(leading(M)))
        return trailing([block.to(self.dtype) for block in self._system.unpack(Hx)])

    def _transpose(self) -> LinearOperator:
        return self


def _has_below(system: NewtonSystem, t: float) -> bool:
    """Whether an eigenvalue is at or below ``t``: then ``H − tI`` is not positive."""
    try:
        return any(step.num_negative for step in factorise(system, -t))
    except SingularSystemError:
        return True


def _norm(system: NewtonSystem) -> float:
    """The spectral norm, roughly and from below, by the power method."""
    generator = torch.Generator().manual_seed(0)
    v = [
        torch.randn(1, stage.size, generator=generator, dtype=torch.float64)
        for stage in system.stages
    ]
    v, norm = [part.to(system.loss_hessian) for part in v], 1.0
    for _ in range(10):
        v = system.product([part / norm for part in v])
        norm = float(torch.cat(v, 1).norm())
        if norm == 0:
            break
    return norm


def _check_batch(X: Any, y: Any, sample: Tensor) -> None:
    if not isinstance(X, Tensor):
        raise TypeError(
            f"Expected the inputs as one tensor, got {type(X).__name__}: a chain has one "
            "input."
        )
    if X.ndim == 0 or X.numel() == 0:
        raise ValueError(f"Expected a batch of inputs, got shape {tuple(X.shape)}.")
    if X.is_floating_point() and X.dtype != sample.dtype:
        raise TypeError(
            f"Expected inputs of the model's dtype {sample.dtype}, got {X.dtype}. Convert "
            f"them with .to({sample.dtype})."
        )
    if X.is_complex():
        raise TypeError(f"Expected real inputs, got {X.dtype}.")
    for what, t in (("inputs", X), *(("targets", t) for t in nested.tensors(y))):
        if t.device != sample.device:
            raise ValueError(
                f"Expected {what} on the model's device {sample.device}, got {t.device}. "
                f"Move them with .to({str(sample.device)!r})."
            )


def _limit(memory_limit: Any, device: torch.device) -> int:
    if memory_limit is None:
        return physical_memory(device)
    _check_number("memory_limit", memory_limit)
    if memory_limit <= 0:
        raise ValueError(f"Expected a positive memory_limit, got {memory_limit}.")
    return int(memory_limit)


def _check_number(what: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"Expected {what} as a number, got {type(value).__name__}.")
    if not math.isfinite(value):
        raise ValueError(f"Expected {what} to be finite, got {value}.")
