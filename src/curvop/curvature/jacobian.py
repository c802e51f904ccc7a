"""The Jacobian of a model over a data set, and its transpose."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Size, Tensor, nn

from curvop.curvature.determinism import NonDeterministicError
from curvop.curvature.differentiated import DifferentiatedLinearOperator
from curvop.curvature.proof import (
    ROUGH,
    ROUNDED,
    UNCHECKED,
    Subject,
    few,
    probes,
    prove,
)
from curvop.curvature.symmetry import check_adjoint
from curvop.derivatives import (
    Aux,
    ChunkSize,
    Differences,
    Differentiation,
    Outputs,
    Way,
    check_chunk_size,
    first_that_works,
    leading,
    trailing,
)
from curvop.operators import (
    Blocks,
    LinearOperator,
    Space,
    TransposedLinearOperator,
    differ,
    probe,
    refuse_not_finite,
)
from curvop.risk import NO_COPY, Given, Predictions, Unpack, preserved


@final
class JacobianLinearOperator(DifferentiatedLinearOperator):
    r"""The Jacobian of a model's predictions over the whole data set.

    .. math:: J = \begin{pmatrix} ∂f_θ(x_1)/∂θ \\ ⋮ \\ ∂f_θ(x_N)/∂θ \end{pmatrix}

    of shape ``[N·C, P]`` for ``N`` data and predictions with ``C`` entries. The rows
    follow the data, which must therefore come in the same order at each pass.

    Args:
        model_func: As for :class:`CurvatureLinearOperator`; must predict one tensor with
            the data on the leading axis.
        params: As for :class:`CurvatureLinearOperator`.
        data: As for :class:`CurvatureLinearOperator`; the targets are not used.
        progressbar: Show a bar over the mini-batches of each product.
        check_deterministic: Predict twice on construction and compare; products are
            proven on a few data.
        num_data: Number of data ``N``. Saves the forward pass that counts them when
            the determinism check is off, and is checked at each pass.
        batch_size_fn: Function of ``X`` that returns the number of data in a batch.
        chunk_size: As for :class:`CurvatureLinearOperator`.
        differentiation: As for :class:`CurvatureLinearOperator`.
        unpack: As for :class:`CurvatureLinearOperator`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit; the message says how to fix it.
        NonDeterministicError: If two passes differ.
        WrongDerivativeError: If no way to differentiate gives the right product.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 3.0]]), None)]
    >>> JacobianLinearOperator(lambda X: X @ w**2, [w], data).to_dense()
    tensor([[ 2., 12.]])
    """

    risk: Predictions

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        params: Given,
        data: Iterable[Any],
        *,
        progressbar: bool = False,
        check_deterministic: bool = True,
        num_data: int | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        chunk_size: ChunkSize = "auto",
        differentiation: Way = "auto",
        unpack: Unpack | None = None,
    ) -> None:
        check_chunk_size(chunk_size)
        self.risk = Predictions.of(
            model_func,
            params,
            data,
            num_data=num_data,
            batch_size_fn=batch_size_fn,
            progressbar=progressbar,
            unpack=unpack,
        )
        self.chunk_size = chunk_size
        self._differentiate_by(differentiation)
        parameters = self.risk.parameters
        # needed by the methods below, before the codomain is known
        self._dtype, self._domain = parameters.dtype, parameters.space
        with self.risk.context():
            if check_deterministic:
                rows = self._check_deterministic()
            else:
                rows = self._count_rows()
        super().__init__(
            parameters.space,
            Space((rows,)),
            dtype=parameters.dtype,
            device=parameters.device,
        )

    def _matmat(self, M: Blocks) -> Blocks:
        with self.risk.context():
            V = leading(M)
            # [K, N·C]
            (out,) = self._finite(lambda J: ([J._jvp(V)], J), V, None)
            if not bool(out.any()):
                self.risk.check_dependence()
        self._check_rows(out.shape[1])
        return trailing([out.reshape(-1, *self.codomain[0])])

    def _rmatmat(self, M: Blocks) -> Blocks:
        with self.risk.context():
            (U,) = leading(M)
            flat = U.flatten(1)  # [K, N·C]
            sums = [U.new_zeros(U.shape[0], *p) for p in self.input_space.shapes]
            row, ways = 0, self.ways
            for X, _ in self.risk.data.batches("Jᵀ @"):
                multiply = partial(self._vjp_of_batch, X=X, rows=flat[:, row:])
                ways, (part, used) = first_that_works(ways, multiply)
                for total, p in zip(sums, part, strict=True):
                    total += p
                row += used
            if not any(bool(total.any()) for total in sums):
                self.risk.check_dependence()
        self._check_rows(row)
        refuse_not_finite(sums, [U], self.risk.parameters.names)
        return trailing(sums)

    def _vjp_of_batch(
        self, way: Differentiation, X: Any, rows: Tensor
    ) -> tuple[Blocks, int]:
        """``Jᵀ U`` of one batch, and how many of the rows ``[K, R]`` belong to it."""
        used = 0

        def cotangents(outputs: Outputs) -> Blocks:
            nonlocal used
            (output,) = outputs
            used = output.numel()
            self._check_rows(rows.shape[1], at_least=used)
            return [rows[:, :used].reshape(-1, *output.shape).to(output.dtype)]

        f = self.risk.function(X)
        return way.vjp(f, self.risk.parameters, cotangents, self.chunk_size), used

    def _transpose(self) -> LinearOperator:
        return TransposedLinearOperator(self, self._rmatmat)

    def _jvp(self, V: Blocks) -> Tensor:
        """``J V``, ``[K, N·C]``."""
        ways = self.ways
        pairs = zip(V, self.risk.parameters.tensors, strict=True)
        V = [v.to(p.dtype) for v, p in pairs]
        parts = []
        for X, _ in self.risk.data.batches("J @"):
            ways, part = first_that_works(ways, partial(self._jvp_of_batch, X=X, V=V))
            parts.append(part.flatten(1))
        return torch.cat(parts, 1)

    def batch_jvp(self, X: Any, V: Blocks) -> Tensor:
        """``J V`` of one batch, ``[K, n·c]``."""
        _, part = first_that_works(self.ways, partial(self._jvp_of_batch, X=X, V=V))
        return part.flatten(1)

    def batch_vjp(self, X: Any, U: Tensor) -> Blocks:
        """``Jᵀ U`` of one batch, for ``U`` ``[K, n·c]``."""
        _, (part, _) = first_that_works(self.ways, partial(self._vjp_of_batch, X=X, rows=U))
        return part

    def _jvp_of_batch(self, way: Differentiation, X: Any, V: Blocks) -> Tensor:
        """``J V`` of one batch, ``[K, n, *c]``."""
        if way is not self.ways[0] and self._proof.doubt != UNCHECKED:
            prove((way,), self.subject(X, None), probes(self.risk.parameters))
        J = self
        if isinstance(way, Differences):
            J, X, V = self._copied(X, V)
        (part,) = way.jvp(J.risk.function(X), J.risk.parameters, V, self.chunk_size)
        return part.to(self._dtype)

    def _copied(self, X: Any, V: Blocks) -> tuple[JacobianLinearOperator, Any, Blocks]:
        """Operator and operands in double precision; unchanged if there can be no copy."""
        try:
            J, X_, _ = self.in_double(X, None)
            J.risk.predicted(X_)
        except NO_COPY:
            return self, X, V
        return J, X_, [v.to(J._dtype) for v in V]

    def subject(self, X: Any, y: Any) -> Subject:
        """The matrix of one batch, to be proven."""
        f, at, dtype = self.risk.function(X), self.risk.parameters, self._dtype

        def risk(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            ((output,), _) = f(params)
            (c,) = probe([output.detach()])
            return ((c * output).sum(),), ()

        def multiply(way: Differentiation, V: Blocks) -> Blocks:
            V = [v.to(p.dtype) for v, p in zip(V, at.tensors, strict=True)]
            with preserved(self.risk.parameters.device):
                return [b.to(dtype) for b in way.jvp(f, at, V, self.chunk_size)]

        def check(way: Differentiation, V: Blocks, JV: Blocks) -> None:
            with preserved(self.risk.parameters.device):
                JtJV = way.vjp(f, at, lambda o: [JV[0].to(o[0].dtype)], None)
            check_adjoint(V, JV, JtJV, ROUNDED.get(dtype, ROUGH))

        def in_double() -> Subject:
            J, X_, y_ = self.in_double(X, y)
            return J.subject(X_, y_)

        def near_by() -> Subject:
            there = replace(self.risk, parameters=at.shifted())
            return self._with(risk=there).subject(X, y)

        return Subject(
            at,
            multiply,
            check,
            lambda _way: None,
            risk,
            ("jvp",),
            functools.cache(in_double),
            near_by,
        )

    def _check_deterministic(self) -> Size:
        """Predict twice and compare; prove on the first batch. The shape of the rows."""
        first = []
        for i, (X, y) in enumerate(self.risk.data.batches("determinism check")):
            first.append(self.risk.predicted(X))
            if i == 0:
                of = self.subject(*few((X, y), lambda X, _: self.risk.predicted(X)))
                if not any(bool(b.any()) for b in of.slope(of.at)):
                    self.risk.check_dependence()
                self.ways, self._proof = prove(self.ways, of, probes(of.at))
        second = [
            self.risk.predicted(X) for X, _ in self.risk.data.batches("determinism check")
        ]
        for i, (a, b) in enumerate(zip(first, second, strict=False)):
            if a.shape != b.shape or differ(a, b):
                raise NonDeterministicError(
                    f"Two passes over the data differ in batch {i}. The rows of a "
                    "Jacobian follow the data: the usual causes are shuffling (use "
                    "shuffle=False) and dropout (call model.eval())."
                )
        if len(first) != len(second):
            raise NonDeterministicError(
                f"Two passes over the data have {len(first)} and {len(second)} batches."
            )
        return _rows([part.shape for part in first])

    def _count_rows(self) -> Size:
        """The shape of the rows, by a forward pass; on one batch if ``N`` is given."""
        shapes = []
        with torch.no_grad():
            for X, y in self.risk.data.batches("counting"):
                shapes.append(self.risk.predict(self.risk.parameters.tensors, X).shape)
                if self.risk.data.num_data is not None:
                    per_datum = shapes[0].numel() // self.risk.data.batch_size(X, y)
                    if shapes[0][:1] == (self.risk.data.batch_size(X, y),):
                        return Size((self.risk.data.num_data, *shapes[0][1:]))
                    return Size((self.risk.data.num_data * per_datum,))
        return _rows(shapes)

    def _check_rows(self, rows: int, *, at_least: int | None = None) -> None:
        """Refuse data that has changed since construction."""
        expected = self.codomain[0].numel()
        if rows != expected if at_least is None else rows < at_least:
            raise ValueError(
                f"Expected data with {expected} predicted numbers, as on construction, "
                f"got {rows if at_least is None else 'more'}. The data has changed, or "
                "num_data is wrong."
            )


def _rows(shapes: Sequence[Size]) -> Size:
    """The shape of all predictions: concatenated if their axes agree, else flattened."""
    if all(len(s) > 0 and s[1:] == shapes[0][1:] for s in shapes):
        return Size((sum(s[0] for s in shapes), *shapes[0][1:]))
    return Size((sum(s.numel() for s in shapes),))


@final
class TransposedJacobianLinearOperator(LinearOperator):
    r"""The transposed Jacobian ``Jᵀ``, of shape ``[P, N·C]``.

    Arguments are those of :class:`JacobianLinearOperator`.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 3.0]]), None)]
    >>> JT = TransposedJacobianLinearOperator(lambda X: X @ w**2, [w], data)
    >>> JT @ torch.tensor([1.0])
    tensor([ 2., 12.])
    """

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        params: Given,
        data: Iterable[Any],
        **options: Any,
    ) -> None:
        J = JacobianLinearOperator(model_func, params, data, **options)
        super().__init__(J.output_space, J.input_space, dtype=J.dtype, device=J.device)
        self._J = J

    def linearize(self, memory_budget: int | None = None, **options: Any) -> LinearOperator:
        """The transpose of :meth:`JacobianLinearOperator.linearize`."""
        return self._J.linearize(memory_budget, **options).T

    def _matmat(self, M: Blocks) -> Blocks:
        return self._J._rmatmat(M)

    def _transpose(self) -> LinearOperator:
        return self._J
