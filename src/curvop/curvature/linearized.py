"""What ``linearize()`` returns: the same matrix, with the work of a data pass kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, final

from torch import Tensor

from curvop.derivatives import ChunkSize, leading, sized, trailing
from curvop.operators import (
    Blocks,
    LinearOperator,
    TransposedLinearOperator,
    properties,
    refuse_not_finite,
)
from curvop.risk import Parameters

Form = Literal["rows", "factored", "recorded", "graphs", "scratch"]


class Products(Protocol):
    """The products of a linearised operator: summed over batches, or stacked."""

    @property
    def nbytes(self) -> int:
        """Bytes that are kept beyond parameters and data."""

    @property
    def compile_seconds(self) -> float:
        """Seconds that a compiler took."""

    @property
    def travels(self) -> bool:
        """Whether each product needs a collective."""

    def multiply(self, V: Blocks) -> Blocks:
        """``A V``, ``[K, *n_i] -> [K, *m_i]``."""

    def multiply_transposed(self, U: Blocks) -> Blocks:
        """``Aᵀ U``, ``[K, *m_i] -> [K, *n_i]``."""


@final
class LinearizedLinearOperator(LinearOperator):
    """The same matrix as an operator's, with the work of a data pass kept.

    Made by ``linearize()`` of a curvature matrix or a Jacobian.

    Attributes:
        origin: The operator that was linearised.
    """

    def __init__(
        self,
        origin: LinearOperator,
        at: Parameters,
        chunk_size: ChunkSize,
        products: Products,
        form: Form,
        seconds: float,
    ) -> None:
        super().__init__(**properties(origin))
        self.origin = origin
        self._products = products
        self._form = form
        self._seconds = seconds
        self._parameters = at
        self._chunk_size = chunk_size
        self._versions = versions(at.watched)

    def nbytes(self) -> int:
        """Bytes that are kept beyond parameters and data."""
        return self._products.nbytes

    @property
    def form(self) -> Form:
        """What is kept.

        ``"rows"``: the rows of the Jacobian. ``"factored"``: inputs and output gradients of
        each linear layer, whose outer products are those rows. ``"recorded"``: the part of
        the product that depends on parameters and data only. ``"graphs"``: autograd's
        graphs. ``"scratch"``: nothing, since no form gives the right product.
        """
        return self._form

    @property
    def setup_seconds(self) -> float:
        """Seconds that ``linearize()`` took."""
        return self._seconds

    @property
    def compile_seconds(self) -> float:
        """Seconds of these that the compiler took; zero without ``compile=``."""
        return self._products.compile_seconds

    @property
    def columns_at_once(self) -> int | None:
        """A chunk, unless each product needs a collective."""
        if self._products.travels or not self.symmetric:
            return None
        return sized(self._chunk_size, self.shape[0])

    def _matmat(self, M: Blocks) -> Blocks:
        parameters = self._parameters
        refuse_if_changed(parameters.watched, self._versions)
        V = leading(M)
        if self.symmetric and V[0].shape[0] == 0:
            return M
        V = [v.to(p.dtype) for v, p in zip(V, parameters.tensors, strict=True)]
        product = self._products.multiply(V)
        refuse_not_finite(product, V, parameters.names if self.symmetric else None)
        return trailing(self._shaped(product, V, self.codomain))

    def _rmatmat(self, M: Blocks) -> Blocks:
        parameters = self._parameters
        refuse_if_changed(parameters.watched, self._versions)
        U = leading(M)
        product = self._products.multiply_transposed(U)
        refuse_not_finite(product, U, parameters.names)
        return trailing(self._shaped(product, U, self.domain))

    def _shaped(
        self, product: Blocks, V: Blocks, shapes: Sequence[Sequence[int]]
    ) -> Blocks:
        K = V[0].shape[0]
        pairs = zip(product, shapes, strict=True)
        return [b.to(self.dtype).reshape(K, *shape) for b, shape in pairs]

    def _transpose(self) -> LinearOperator:
        return self if self.symmetric else TransposedLinearOperator(self, self._rmatmat)


# What J.linearize() returned was once a class of its own.
LinearizedJacobianLinearOperator = LinearizedLinearOperator


def versions(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Numbers that change when a tensor is written to, or its data replaced."""
    return [(t._version, t.data_ptr()) for t in tensors]


def refuse_if_changed(tensors: Sequence[Tensor], before: list[tuple[int, int]]) -> None:
    """Refuse to multiply after tensors have changed.

    Raises:
        ValueError: If they have.
    """
    if versions(tensors) != before:
        raise ValueError(
            "The parameters (or buffers) of the model have changed since the operator "
            "was linearised: products would be those of the old ones. Call linearize() "
            "again."
        )
