"""Matrices of derivatives: ways to differentiate, their proof, ``linearize()``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from curvop.curvature.linearized import LinearizedLinearOperator
from curvop.curvature.proof import UNCHECKED, Proof
from curvop.derivatives import (
    CALLED,
    ChunkSize,
    Differences,
    Differentiation,
    RiskDifferentiation,
    Way,
    candidates,
    warn_of_change,
    with_kernels_of,
)
from curvop.operators import Blocks, LinearOperator, not_finite, refuse_not_finite
from curvop.risk import Predictions, Risk

Operator = TypeVar("Operator", bound="DifferentiatedLinearOperator")


class DifferentiatedLinearOperator(LinearOperator):
    """A matrix of derivatives of a model over data.

    Attributes:
        risk: The empirical risk, or the predictions, that are differentiated.
        ways: Ways to differentiate; the first one is in use.
        chunk_size: Number of columns that are multiplied at once, as asked for.
    """

    risk: Risk | Predictions
    ways: tuple[Differentiation, ...]
    chunk_size: ChunkSize
    _proof: Proof

    @property
    def differentiation(self) -> Way:
        """The way to differentiate, as an argument ``differentiation=`` names it."""
        return CALLED[self.ways[0].name]

    @property
    def proof(self) -> Proof:
        """What is known of the products since construction.

        >>> import torch
        >>> from curvop import HessianLinearOperator
        >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> data = [(torch.eye(2, dtype=torch.float64), torch.zeros(2).double())]
        >>> H = HessianLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
        >>> H.proof.differentiation, H.proof.error < 1e-6, H.proof.doubt
        ('backpack', True, None)
        """
        return self._proof

    @property
    def relative_error(self) -> float | None:
        """Estimated relative error of products by differences so far; else ``None``."""
        way = self.ways[0]
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
    ) -> LinearizedLinearOperator:
        """The same matrix, with the work of a data pass kept for many products.

        GGN and empirical Fisher keep the rows of the Jacobian where those are few, or
        the factors ``δ ⊗ z`` of each linear layer and convolution where that takes fewer
        multiplications: a product then needs no pass through the network. Otherwise the
        product is recorded once per shape of batch and split: the part that depends on
        parameters and data only runs once and is kept, the part that depends on the vector
        is replayed. Small batches are concatenated. For models that cannot be recorded,
        autograd's graphs are kept instead. In every form, the first product is compared
        with the operator's own. The operator itself keeps nothing; the result holds the
        data.

        Args:
            memory_budget: Bytes to keep at most, beyond parameters and data; what does
                not fit is recomputed at each product. By default everything is kept.
            num_products: Number of products that you will compute. Recording is chosen
                only if they make up for its time.
            batch_size: Number of data up to which batches are concatenated; by default
                as many as fit into the processor's caches.
            compile: Compile the recorded product with ``torch.compile``, ``True`` or the
                name of a backend; several columns are compiled when they first come.

        Returns:
            An operator with ``nbytes()``, ``form``, ``setup_seconds`` and
            ``compile_seconds``. It refuses to multiply after a parameter has been
            changed in place.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If one is out of range, or the data does not fit; see the class.

        >>> import torch
        >>> from curvop import HessianLinearOperator, JacobianLinearOperator
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
        >>> H = HessianLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
        >>> H.linearize() @ torch.tensor([1.0, 1.0])
        tensor([12.,  0.])
        >>> J = JacobianLinearOperator(lambda X: X @ w**2, [w], data).linearize()
        >>> J @ torch.tensor([1.0, 1.0]), J.T @ torch.tensor([1.0])
        (tensor([2.]), tensor([2., 0.]))
        """
        # the door up: forms are built on operators, and this method on forms
        from curvop.linearized import linearize

        return linearize(
            self,
            memory_budget=memory_budget,
            num_products=num_products,
            batch_size=batch_size,
            compile=compile,
        )

    def with_risk(self: Operator, risk: Any) -> Operator:
        """The same matrix of another risk, over parameters of the same shapes."""
        return self._with(risk=risk)

    def with_kernels_of_its_way(self: Operator) -> Operator:
        """With the kernels of its way in the model, for derivatives taken elsewhere."""
        risk: Any = self.risk  # Risk or Predictions
        return self._with(risk=with_kernels_of(self.ways[0], risk))

    def _differentiate_by(self, way: Way) -> None:
        """Set the ways to try, before any proof."""
        self.ways = candidates(way, self.risk.parameters)
        self._proof = Proof(self.differentiation, doubt=UNCHECKED)

    @property
    def _differentiate(self) -> RiskDifferentiation:
        """The way to differentiate that is in use."""
        return self.ways[0]

    def in_double(self: Operator, X: Any, y: Any) -> tuple[Operator, Any, Any]:
        """The operator and a batch, in double precision.

        Raises:
            MemoryError: If there is too little memory.
            RuntimeError: If a copy computes something else, or with other parameters.
        """
        risk, X, y = self.risk.in_double(X, y)
        return self._with(risk=risk, _dtype=torch.float64), X, y

    def _finite(
        self: Operator,
        multiply: Callable[[Operator], tuple[Blocks, Operator]],
        V: Blocks,
        names: Sequence[str] | None,
    ) -> Blocks:
        """A product by the first way that gives finite numbers.

        Args:
            multiply: ``operator ->`` its product, and the operator with the way used.
            V: The columns; if they are not finite, the product need not be.
            names: Names of the blocks of the product.

        Raises:
            ValueError: If there is none.
        """
        product, first = multiply(self)
        op = first
        if not_finite(product) is None or not_finite(V) is not None:
            return product
        while len(op.ways) > 1:
            try:
                product, op = multiply(op._with(ways=op.ways[1:]))
            except RuntimeError:
                break  # the error to raise is that the product is not finite
            if not_finite(product) is None:
                break
        refuse_not_finite(product, V, names)
        warn_of_change({first.ways[0].name: "a product is not finite"}, op.ways[0])
        return product

    def _with(self: Operator, **fields: Any) -> Operator:
        """The same operator with other values for some fields."""
        other = copy.copy(self)
        other.__dict__.update(fields)
        return other
