"""The Jacobian of a model over a data set, and its transpose."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Size, Tensor, nn

from curvop.curvature.columns import ChunkSize, check_chunk_size, leading, trailing
from curvop.curvature.data import Data
from curvop.curvature.dependence import check_dependence
from curvop.curvature.determinism import NonDeterministicError
from curvop.curvature.differences import Differences
from curvop.curvature.differentiation import (
    CALLED,
    Aux,
    Differentiable,
    Differentiation,
    Outputs,
    Way,
    candidates,
    finite_product,
    first_that_works,
)
from curvop.curvature.parameters import Given, as_parameters, constant
from curvop.curvature.probing import differ, probe, refuse_not_finite
from curvop.curvature.proof import (
    ROUGH,
    ROUNDED,
    UNCHECKED,
    Proof,
    Subject,
    few,
    probes,
    prove,
    shifted,
)
from curvop.curvature.randomness import preserved
from curvop.curvature.replica import NO_COPY, Source, doubled
from curvop.curvature.surroundings import surroundings
from curvop.curvature.symmetry import check_adjoint
from curvop.curvature.unpacking import Unpack
from curvop.operators.algebra import TransposedLinearOperator
from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks, Space

if TYPE_CHECKING:
    from curvop.curvature.jacobian_linearization import LinearizedJacobianLinearOperator


@final
class JacobianLinearOperator(LinearOperator):
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
        batch_size_fn: Function of ``X`` that tells the number of data in a batch.
        chunk_size: As for :class:`CurvatureLinearOperator`.
        differentiation: As for :class:`CurvatureLinearOperator`.
        unpack: As for :class:`CurvatureLinearOperator`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit; the message says how to mend it.
        NonDeterministicError: If two passes differ.
        WrongDerivativeError: If no way to differentiate gives the right product.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> data = [(torch.tensor([[1.0, 3.0]]), None)]
    >>> JacobianLinearOperator(lambda X: X @ w**2, [w], data).to_dense()
    tensor([[ 2., 12.]])
    """

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
        parameters = as_parameters(model_func, params)
        self._parameters = parameters
        self._data = Data(
            data,
            parameters.device,
            num_data,
            batch_size_fn,
            progressbar,
            unpack=unpack,
            params=parameters.tensors,
        )
        self._source = Source(model_func)
        self._ways = candidates(differentiation, parameters)
        self._proof = Proof(self.differentiation, doubt=UNCHECKED)
        self._chunk_size = chunk_size
        # what the methods below need before the codomain is known
        self._dtype, self._domain = parameters.dtype, parameters.space
        with surroundings(self._data):
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

    @property
    def differentiation(self) -> Way:
        """The way that products are differentiated."""
        return CALLED[self._ways[0].name]

    @property
    def proof(self) -> Proof:
        """What is known of the products, from construction."""
        return self._proof

    @property
    def relative_error(self) -> float | None:
        """Estimated relative error of products so far; ``None`` where it is rounding."""
        way = self._ways[0]
        return way.error if isinstance(way, Differences) else None

    def __repr__(self) -> str:
        """With the way to differentiate, and whether it is proven."""
        return f"{super().__repr__()[:-1]}, {self.differentiation} {self.proof}>"

    def linearize(
        self,
        memory_budget: int | None = None,
        *,
        num_products: int = 100,
        batch_size: int | None = None,
        compile: bool | str = False,
    ) -> LinearizedJacobianLinearOperator:
        """The same matrix, with the work of a data pass kept for many products.

        Arguments are those of :meth:`CurvatureLinearOperator.linearize`.

        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> data = [(torch.tensor([[1.0, 3.0]]), None)]
        >>> J = JacobianLinearOperator(lambda X: X @ w**2, [w], data).linearize()
        >>> J @ torch.tensor([1.0, 1.0]), J.T @ torch.tensor([1.0])
        (tensor([14.]), tensor([ 2., 12.]))
        """
        from curvop.curvature.jacobian_linearization import linearize

        return linearize(
            self,
            memory_budget=memory_budget,
            num_products=num_products,
            batch_size=batch_size,
            compile=compile,
        )

    def _matmat(self, M: Blocks) -> Blocks:
        with surroundings(self._data):
            V = leading(M)
            # [K, N·C]
            (out,) = finite_product(self, lambda J: ([J._push(V)], J), V, None)
            if not bool(out.any()):
                check_dependence(self._parameters, self._data)
        self._check_rows(out.shape[1])
        return trailing([out.reshape(-1, *self.codomain[0])])

    def _rmatmat(self, M: Blocks) -> Blocks:
        with surroundings(self._data):
            (U,) = leading(M)
            flat = U.flatten(1)  # [K, N·C]
            sums = [U.new_zeros(U.shape[0], *p) for p in self._domain.shapes]
            row, ways = 0, self._ways
            for X, _ in self._data.batches("Jᵀ @"):
                pull = partial(self._pull_batch, X=X, rows=flat[:, row:])
                ways, (part, used) = first_that_works(ways, pull)
                for total, p in zip(sums, part, strict=True):
                    total += p
                row += used
            if not any(bool(total.any()) for total in sums):
                check_dependence(self._parameters, self._data)
        self._check_rows(row)
        refuse_not_finite(sums, [U], self._parameters.names)
        return trailing(sums)

    def _pull_batch(self, way: Differentiation, X: Any, rows: Tensor) -> tuple[Blocks, int]:
        """``Jᵀ U`` of one batch, and how many of the rows ``[K, R]`` belong to it."""
        used = 0

        def cotangents(outputs: Outputs) -> Blocks:
            nonlocal used
            (output,) = outputs
            used = output.numel()
            self._check_rows(rows.shape[1], at_least=used)
            return [rows[:, :used].reshape(-1, *output.shape).to(output.dtype)]

        f = self._function(X)
        return way.vjp(f, self._parameters, cotangents, self._chunk_size), used

    def _transpose(self) -> LinearOperator:
        return TransposedLinearOperator(self, self._rmatmat)

    def _push(self, V: Blocks) -> Tensor:
        """``J V``, ``[K, N·C]``."""
        ways = self._ways
        pairs = zip(V, self._parameters.tensors, strict=True)
        V = [v.to(p.dtype) for v, p in pairs]
        parts = []
        for X, _ in self._data.batches("J @"):
            ways, part = first_that_works(ways, partial(self._push_batch, X=X, V=V))
            parts.append(part.flatten(1))
        return torch.cat(parts, 1)

    def _push_batch(self, way: Differentiation, X: Any, V: Blocks) -> Tensor:
        """``J V`` of one batch, ``[K, n, *c]``."""
        if way is not self._ways[0] and self._proof.doubt != UNCHECKED:
            prove((way,), self._subject(X, None), probes(self))
        J = self
        if isinstance(way, Differences):
            J, X, V = self._in_double(X, V)
        (part,) = way.jvp(J._function(X), J._parameters, V, self._chunk_size)
        return part.to(self._dtype)

    def _in_double(self, X: Any, V: Blocks) -> tuple[JacobianLinearOperator, Any, Blocks]:
        """For differences, or the same where no copy can be made."""
        try:
            J, X_, _ = doubled(self, X, None)
            J._predicted(X_, None)
        except NO_COPY:
            return self, X, V
        return J, X_, [v.to(J._dtype) for v in V]

    def _subject(self, X: Any, y: Any) -> Subject:
        """What is to be proven on a batch."""
        f, at, dtype = self._function(X), self._parameters, self._dtype

        def risk(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            ((output,), _) = f(params)
            (c,) = probe([output.detach()])
            return ((c * output).sum(),), ()

        def multiply(way: Differentiation, V: Blocks) -> Blocks:
            V = [v.to(p.dtype) for v, p in zip(V, at.tensors, strict=True)]
            with preserved(self._parameters.device):
                return [b.to(dtype) for b in way.jvp(f, at, V, self._chunk_size)]

        def check(way: Differentiation, V: Blocks, JV: Blocks) -> None:
            with preserved(self._parameters.device):
                JtJV = way.vjp(f, at, lambda o: [JV[0].to(o[0].dtype)], None)
            check_adjoint(V, JV, JtJV, ROUNDED.get(dtype, ROUGH))

        in_double = functools.cache(lambda: _subject(*doubled(self, X, y)))
        return Subject(
            at,
            multiply,
            check,
            lambda _way: None,
            risk,
            ("jvp",),
            in_double,
            lambda: self._with(_parameters=shifted(at))._subject(X, y),
        )

    def _with(self, **fields: Any) -> JacobianLinearOperator:
        """The same operator with other values for some fields."""
        other = copy.copy(self)
        other.__dict__.update(fields)
        return other

    def _function(self, X: Any) -> Differentiable:
        """The prediction for one batch as a function of the parameters."""

        def predict(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            return (self._predict(params, X),), ()

        return predict

    def _predict(self, params: Sequence[Tensor], X: Any) -> Tensor:
        prediction = self._parameters.model(params, X)
        if not isinstance(prediction, Tensor):
            raise TypeError(
                "Expected a model that predicts one tensor, got "
                f"{type(prediction).__name__}. Wrap it, as in lambda X: model(X).logits."
            )
        return prediction

    def _check_deterministic(self) -> Size:
        """Predict twice, and prove on the first batch; the shape of the rows."""
        first = []
        for i, (X, y) in enumerate(self._data.batches("determinism check")):
            first.append(self._predicted(X, y))
            if i == 0:
                of = self._subject(*few((X, y), self._predicted))
                if not any(bool(b.any()) for b in of.slope(of.at)):
                    check_dependence(self._parameters, self._data)
                self._ways, self._proof = prove(self._ways, of, probes(self))
        second = [self._predicted(X, y) for X, y in self._data.batches("determinism check")]
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

    def _predicted(self, X: Any, y: Any) -> Tensor:
        """The prediction for one batch, of which no derivative is asked for."""
        with torch.no_grad():
            return self._predict([constant(p) for p in self._parameters.tensors], X)

    def _count_rows(self) -> Size:
        """The shape of the rows by forward passes; of one batch when ``N`` is known."""
        shapes = []
        with torch.no_grad():
            for X, y in self._data.batches("counting"):
                shapes.append(self._predict(self._parameters.tensors, X).shape)
                if self._data.num_data is not None:
                    per_datum = shapes[0].numel() // self._data.batch_size(X, y)
                    if shapes[0][:1] == (self._data.batch_size(X, y),):
                        return Size((self._data.num_data, *shapes[0][1:]))
                    return Size((self._data.num_data * per_datum,))
        return _rows(shapes)

    def _check_rows(self, rows: int, *, at_least: int | None = None) -> None:
        """The data must be what it was on construction."""
        expected = self.codomain[0].numel()
        if rows != expected if at_least is None else rows < at_least:
            raise ValueError(
                f"Expected data with {expected} predicted numbers, as on construction, "
                f"got {rows if at_least is None else 'more'}. The data has changed, or "
                "num_data is wrong."
            )


def _subject(J: JacobianLinearOperator, X: Any, y: Any) -> Subject:
    return J._subject(X, y)


def _rows(shapes: Sequence[Size]) -> Size:
    """All predictions as one block: stacked if they agree, else flattened."""
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
        super().__init__(J._codomain, J._domain, dtype=J.dtype, device=J.device)
        self._J = J

    def linearize(self, memory_budget: int | None = None, **options: Any) -> LinearOperator:
        """The transpose of :meth:`JacobianLinearOperator.linearize`."""
        return self._J.linearize(memory_budget, **options).T

    def _matmat(self, M: Blocks) -> Blocks:
        return self._J._rmatmat(M)

    def _transpose(self) -> LinearOperator:
        return self._J
