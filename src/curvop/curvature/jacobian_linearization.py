"""A Jacobian linearised once, for many products with it and its transpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor
from torch.func import jvp, vjp

from curvop.curvature import nested
from curvop.curvature.columns import leading, trailing
from curvop.curvature.composed import with_its_kernels
from curvop.curvature.dependence import check_dependence
from curvop.curvature.differentiation import first_that_works, is_refusal
from curvop.curvature.keeping import Effort, Piece, held, merged, noted, storages
from curvop.curvature.kept_graph import KeptGraph
from curvop.curvature.linearization import refuse_if_changed, versions, warn_not_kept
from curvop.curvature.probing import probe, refuse_not_finite, tolerance
from curvop.curvature.replay import Replay
from curvop.curvature.substitution import TURN
from curvop.curvature.surroundings import surroundings
from curvop.curvature.symmetry import check_columns
from curvop.curvature.tracing import record
from curvop.operators.algebra import TransposedLinearOperator
from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from curvop.curvature.jacobian import JacobianLinearOperator


_Form = Literal["recorded", "graphs", "scratch"]


@dataclass(frozen=True)
class Batch:
    """The Jacobian of one batch.

    Attributes:
        push: ``J V``, ``[K, *n_i] -> [K, R]``.
        pull: ``Jᵀ U``, ``[K, R] -> [K, *n_i]``.
        rows: Number ``R`` of rows.
    """

    push: Callable[[Blocks], Tensor]
    pull: Callable[[Tensor], Blocks]
    rows: int


@final
class LinearizedJacobianLinearOperator(LinearOperator):
    """The same matrix as a Jacobian, with the work of a data pass kept.

    Made by :meth:`JacobianLinearOperator.linearize`.
    """

    def __init__(
        self,
        J: JacobianLinearOperator,
        batches: Sequence[Batch],
        nbytes: int,
        form: _Form,
        seconds: float,
        compile_seconds: float,
    ) -> None:
        super().__init__(J._domain, J._codomain, dtype=J.dtype, device=J.device)
        self._J = J
        self._batches = tuple(batches)
        self._nbytes = nbytes
        self._form = form
        self._seconds = seconds
        self._compile_seconds = compile_seconds
        self._versions = versions(J._parameters.watched)

    def nbytes(self) -> int:
        """Bytes that are kept beyond parameters and data."""
        return self._nbytes

    @property
    def form(self) -> str:
        """What is kept: ``"recorded"`` or ``"graphs"``; nothing if ``"scratch"``."""
        return self._form

    @property
    def setup_seconds(self) -> float:
        """Seconds that it took to linearise."""
        return self._seconds

    @property
    def compile_seconds(self) -> float:
        """Of these, seconds that the compiler took; zero without ``compile=True``."""
        return self._compile_seconds

    def _matmat(self, M: Blocks) -> Blocks:
        refuse_if_changed(self._J._parameters.watched, self._versions)
        tensors = self._J._parameters.tensors
        V = [v.to(p.dtype) for v, p in zip(leading(M), tensors, strict=True)]
        JV = torch.cat([batch.push(V) for batch in self._batches], 1).to(self.dtype)
        refuse_not_finite([JV], V, None)
        return trailing([JV.reshape(-1, *self.codomain[0])])

    def _rmatmat(self, M: Blocks) -> Blocks:
        refuse_if_changed(self._J._parameters.watched, self._versions)
        (U,) = leading(M)
        parts = U.flatten(1).split([batch.rows for batch in self._batches], 1)
        sums = [U.new_zeros(U.shape[0], *shape) for shape in self.domain]
        for batch, u in zip(self._batches, parts, strict=True):
            for total, part in zip(sums, batch.pull(u), strict=True):
                total += part
        refuse_not_finite(sums, [U], self._J._parameters.names)
        return trailing(sums)

    def _transpose(self) -> LinearOperator:
        return TransposedLinearOperator(self, self._rmatmat)


def linearize(
    J: JacobianLinearOperator,
    *,
    memory_budget: int | None,
    num_products: int,
    batch_size: int | None,
    compile: bool | str,
) -> LinearizedJacobianLinearOperator:
    """Implements :meth:`JacobianLinearOperator.linearize`."""
    effort = Effort.asked_for(memory_budget, num_products, batch_size, compile)
    start = time.perf_counter()
    J = with_its_kernels(J)
    with surroundings(J._data):
        inputs = [X for X, _ in J._data.batches("linearize")]
        right = _products(J, inputs)
        if not bool(right[1].any()):
            check_dependence(J._parameters, J._data)

        def result(
            form: _Form, batches: Sequence[Batch], nbytes: int, compiling: float
        ) -> LinearizedJacobianLinearOperator:
            seconds = time.perf_counter() - start
            L = LinearizedJacobianLinearOperator(
                J, batches, nbytes, form, seconds, compiling
            )
            _verify(L, J, right)
            return L

        if effort.compiler or (effort.pays_recording and J._parameters.functional):
            try:
                return result("recorded", *_recorded(J, inputs, effort))
            except Exception as error:
                if effort.compiler or not is_refusal(error):
                    raise
                warn_not_kept("recorded", error)
        try:
            return result("graphs", *_graphs(J, inputs, effort), 0.0)
        except Exception as error:
            if not is_refusal(error):
                raise
            if J.relative_error is None:
                warn_not_kept("graphs", error)
        return result("scratch", _scratch(J, inputs), 0, 0.0)


def _recorded(
    J: JacobianLinearOperator, inputs: Sequence[Any], effort: Effort
) -> tuple[list[Batch], int, float]:
    """Both products recorded together: they share what does not depend on a vector."""
    pairs = merged(J, [(X, None) for X in inputs], effort.batch_size)
    params = [p.detach() for p in J._parameters.tensors]
    known: dict[Any, tuple[Replay, Replay, int]] = {}
    batches: list[Batch] = []
    seen = held(J, pairs)
    total, seconds = 0, 0.0
    for X, _ in pairs:
        data = list(nested.tensors(X))
        key = (nested.structure(X), tuple((t.shape, t.dtype) for t in data))
        is_new = key not in known
        if is_new:
            known[key] = _record(J, X, params, data, effort.compiler)
        push, pull, rows = known[key]
        static = (*params, *data)
        kept = push.prepare(static)
        if is_new and effort.compiler is not None:
            seconds += push.warm_up(kept, probe([p[None] for p in params]))
            seconds += pull.warm_up(kept, [kept[0].new_zeros(1, rows)])
        new = storages(kept, besides=seen)
        if effort.allows(total + sum(new.values())):
            seen |= new.keys()
            total += sum(new.values())
            batches.append(_replayed(push.with_kept(kept), pull.with_kept(kept), rows))
        else:
            both = push.from_scratch(static), pull.from_scratch(static)
            batches.append(_replayed(*both, rows))
    return batches, total, seconds


def _record(
    J: JacobianLinearOperator,
    X: Any,
    params: list[Tensor],
    data: list[Tensor],
    compiler: str | None,
) -> tuple[Replay, Replay, int]:
    """``J v`` and ``Jᵀ u`` of one batch as functions of parameters, data and vector."""
    n, d = len(params), len(data)
    moving = [b[0] for b in probe([p[None] for p in params])]
    with torch.no_grad():
        output = J._predict(params, X)
    u = probe([output.flatten()])

    def product(*tensors: Tensor) -> list[list[Tensor]]:
        fresh = iter(tensors[n : n + d])
        inputs = nested.map_tensors(lambda _: next(fresh), X)
        v, u = tensors[n + d : -1], tensors[-1]

        def predict(*p: Tensor) -> Tensor:
            return J._predict(p, inputs).flatten()

        with TURN:
            _, Jv = jvp(predict, tensors[:n], v)  # type: ignore[misc]
        _, pull = vjp(predict, *tensors[:n])  # type: ignore[misc]
        return [[Jv], list(pull(u))]

    recordings = record(product, [*params, *data], moving, u)
    push, pull = (Replay(recording, compiler) for recording in recordings)
    return push, pull, output.numel()


def _replayed(push: Piece, pull: Piece, rows: int) -> Batch:
    return Batch(lambda V: push(V)[0], lambda U: pull([U]), rows)


def _graphs(
    J: JacobianLinearOperator, inputs: Sequence[Any], effort: Effort
) -> tuple[list[Batch], int]:
    """Autograd's graphs, as far as the budget allows."""
    batches: list[Batch] = []
    besides, total = held(J, [(X, None) for X in inputs]), 0
    for X in inputs:
        saved: dict[int, int] = {}
        kept: KeptGraph | None = KeptGraph()
        with noted(saved, besides=besides):
            (out,) = _once(J, X, kept, probe([p[None] for p in J._parameters.tensors]))
        if effort.allows(total + sum(saved.values())):
            total += sum(saved.values())
        else:
            kept = None
        batches.append(_graph_batch(J, X, kept, out.numel()))
    return batches, total


def _graph_batch(
    J: JacobianLinearOperator, X: Any, kept: KeptGraph | None, rows: int
) -> Batch:
    def push(V: Blocks) -> Tensor:
        with surroundings(J._data):
            return _once(J, X, kept, V)[0].flatten(1)

    def pull(U: Tensor) -> Blocks:
        with surroundings(J._data):
            way = kept or KeptGraph()

            def cotangents(outputs: tuple[Tensor, ...]) -> Blocks:
                return [U.reshape(-1, *outputs[0].shape).to(outputs[0].dtype)]

            f = J._function(X)
            return way.product(lambda: way.vjp(f, J._parameters, cotangents, J._chunk_size))

    return Batch(push, pull, rows)


def _once(J: JacobianLinearOperator, X: Any, kept: KeptGraph | None, V: Blocks) -> Blocks:
    """``J V`` of one batch, with a graph that is kept or one for this time."""
    way = kept or KeptGraph()
    f = J._function(X)
    return way.product(lambda: way.jvp(f, J._parameters, V, J._chunk_size))


def _scratch(J: JacobianLinearOperator, inputs: Sequence[Any]) -> list[Batch]:
    """The operator's own products, with nothing kept."""

    def batch(X: Any) -> Batch:
        rows = J._predicted(X, None).numel()

        def push(V: Blocks) -> Tensor:
            with surroundings(J._data):
                _, part = first_that_works(J._ways, lambda w: J._push_batch(w, X, V))
            return part.flatten(1)

        def pull(U: Tensor) -> Blocks:
            with surroundings(J._data):
                _, (part, _) = first_that_works(J._ways, lambda w: J._pull_batch(w, X, U))
            return part

        return Batch(push, pull, rows)

    return [batch(X) for X in inputs]


def _products(J: JacobianLinearOperator, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The operator's own products with a probe, by one pass over these inputs."""
    batches = _scratch(J, inputs)
    v = probe([p.detach()[None] for p in J._parameters.tensors])
    (u,) = probe([torch.empty(J.shape[0], dtype=J.dtype, device=J.device)])
    Jv = torch.cat([batch.push(v) for batch in batches], 1)[0]
    parts = u.split([batch.rows for batch in batches])
    Jtu = [batch.pull(part[None]) for batch, part in zip(batches, parts, strict=True)]
    return Jv, torch.cat([torch.stack(b).sum(0).flatten() for b in zip(*Jtu, strict=True)])


def _verify(
    L: LinearizedJacobianLinearOperator,
    J: JacobianLinearOperator,
    right: tuple[Tensor, Tensor],
) -> None:
    """Both products must be the operator's own, of one column and of two.

    Raises:
        RuntimeError: If one is not.
    """
    v = torch.cat([b.flatten() for b in probe([p.detach() for p in J._parameters.tensors])])
    (u,) = probe([right[0]])
    rounding = max(tolerance(J.dtype), 10 * (J.relative_error or 0.0))
    for A, w, Aw in ((L, v.to(J.dtype), right[0]), (L.T, u.to(J.dtype), right[1])):
        scale = max(float(Aw.abs().max()), 1e-300)
        one, two = A @ w, A @ torch.stack([w, 2 * w], 1)
        error = float((one - Aw).abs().max()) / scale
        if not error <= rounding:
            raise RuntimeError(
                f"the linearised product is off by {error:.1e} relative: its batches "
                "cannot be merged or its graph not be recorded"
            )
        check_columns([one[None]], [two.T[1:] / 2], 4 * rounding)
