"""The Jacobian of a model over a data set, and its transpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Size, Tensor, nn

from curvop.curvature.columns import ChunkSize, check_chunk_size, leading, trailing
from curvop.curvature.data import Data
from curvop.curvature.dependence import check_dependence
from curvop.curvature.determinism import NonDeterministicError
from curvop.curvature.differentiation import (
    Aux,
    Differentiable,
    Differentiation,
    Outputs,
    Way,
    candidates,
    first_that_works,
)
from curvop.curvature.parameters import Given, as_parameters
from curvop.curvature.probing import differ, probe
from curvop.curvature.randomness import preserved
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
        check_deterministic: Multiply twice on construction and compare.
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
        self._ways = candidates(differentiation, parameters)
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
            parts = [part for part, _ in self._push(V)]
            out = torch.cat([part.flatten(1) for part in parts], 1)  # [K, N·C]
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

    def _push(
        self, V: Blocks, *, pull: bool = False
    ) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
        """``J V`` batch by batch, ``[K, n, *c]``, and the ways that remain.

        With ``pull``, only those remain that can also multiply with ``Jᵀ``.
        """
        ways = self._ways
        pairs = zip(V, self._parameters.tensors, strict=True)
        V = [v.to(p.dtype) for v, p in pairs]
        for X, _ in self._data.batches("J @"):
            push = partial(self._push_batch, X=X, V=V, pull=pull)
            ways, part = first_that_works(ways, push)
            yield part, ways

    def _push_batch(self, way: Differentiation, X: Any, V: Blocks, pull: bool) -> Tensor:
        """``J V`` of one batch, ``[K, n, *c]``."""
        f = self._function(X)
        # with pull, the same dropout in both directions
        with preserved(self._parameters.device) if pull else nullcontext():
            (part,) = way.jvp(f, self._parameters, V, self._chunk_size)
        if pull:
            pulled = way.vjp(f, self._parameters, lambda _: [part], self._chunk_size)
            if not any(bool(b.any()) for b in pulled):
                check_dependence(self._parameters, self._data)
            if way is not self._ways[-1]:
                check_adjoint(V, [part], pulled)
        return part.to(self._dtype)

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
        """Multiply twice; the shape of the rows."""
        v = probe([p.detach().expand(2, *p.shape) for p in self._parameters.tensors])
        v = [b.to(self._dtype) for b in v]
        first = list(self._push(v, pull=True))
        self._ways = first[-1][1]
        second = list(self._push(v))
        for i, ((a, _), (b, _)) in enumerate(zip(first, second, strict=False)):
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
        if not any(bool(part.any()) for part, _ in first):
            check_dependence(self._parameters, self._data)
        return _rows([part.shape[1:] for part, _ in first])

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
