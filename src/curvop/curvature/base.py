"""Curvature matrices: sum over the data, divide once, prove when built."""

from __future__ import annotations

import functools
import itertools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from curvop.curvature.culprit import Kind
from curvop.curvature.determinism import Found
from curvop.curvature.determinism import check_deterministic as check
from curvop.curvature.differentiated import DifferentiatedLinearOperator
from curvop.curvature.proof import UNCHECKED, Subject, probes, prove
from curvop.curvature.symmetry import check_symmetric
from curvop.derivatives import (
    Aux,
    ChunkSize,
    Differences,
    Differentiation,
    InaccurateError,
    Outputs,
    RiskDifferentiation,
    Way,
    check_chunk_size,
    first_that_works,
    leading,
    sized,
    trailing,
)
from curvop.operators import Blocks, LinearOperator
from curvop.risk import (
    NO_COPY,
    Data,
    Divisor,
    Given,
    Loss,
    Parameters,
    Risk,
    Unpack,
    all_reduce,
    failing_together,
    nested,
    preserved,
    settled,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CurvatureLinearOperator(DifferentiatedLinearOperator):
    r"""A symmetric curvature matrix of an empirical risk, summed over mini-batches.

    .. math:: L(θ) = \frac{1}{Z} \sum_n ℓ(f_θ(x_n), y_n)

    ``Z`` is what the reduction of the loss divides by over the *whole* data set.
    However the data is cut into mini-batches, the operator equals the one of the loss on
    the concatenated data.

    Subclasses implement :meth:`_matmat_batch`, and are final.

    Args:
        model_func: An ``nn.Module``; a callable ``X -> prediction`` over the given
            parameters; or, with ``params`` a dict, a callable
            ``(params, X) -> prediction``. It is not changed. If the prediction has an
            attribute ``logits``, as in ``transformers``, that is used.
        loss_func: A torch loss module, or a callable ``(prediction, y) -> scalar``; or
            ``(prediction, y, weight)``, for batches with weights. It may have parameters
            of its own, and depend on those of the model: the Hessian and the empirical
            Fisher take these terms into account, matrices of the prediction alone raise an
            error.
        params: List of tensors (their order is the order of the blocks), dict from names
            to tensors, or ``model.named_parameters()``; a module stands for all of its
            parameters that require a gradient. Other parameters are constants.
        data: A re-iterable of mini-batches ``(X, y)``: tensors, or nested tuples, lists
            and mappings of tensors, taken as constants and moved to the device of the
            parameters. In a mapping, the entry ``labels``, ``targets``, ``target`` or ``y``
            is ``y``, and ``X`` is the mapping without it.
        progressbar: Show a bar over the mini-batches of each product.
        check_deterministic: Pass over the data twice on construction and compare loss
            and gradient; also checks what is assumed about your own loss, and proves on a
            few data that products are right: see :attr:`proof`.
        num_data: Number of data, checked at each pass.
        batch_size_fn: Function of ``X`` that returns the number of data in a batch; by
            default the leading axis.
        block_sizes: Numbers of consecutive parameters per block; the operator is then
            the block-diagonal of the matrix. By default one block: the full matrix.
        reduction: ``"mean"`` or ``"sum"`` for a callable loss that does not state it, or
            a callable ``(prediction, y) ->`` the number that the mean was divided by.
        chunk_size: Number of columns that are multiplied at once; ``None`` for all.
            ``"auto"`` takes eight, so that the activations' tangents take at most eight
            times the memory of the activations; for small models more, up to a million
            parameters or inputs in a chunk; for Hessians of wide convolutional networks
            on a CPU one, which is quicker.
        process_group: A ``torch.distributed`` group in which each rank holds its share
            of the data (a rank may hold none). Every rank multiplies the same vector,
            and the divisor is global. One collective per product.
        differentiation: ``"func"`` (``torch.func``: forward mode and vmap),
            ``"backpack"`` (double backward over one graph: any op, any callable),
            ``"differences"`` (central differences of first derivatives: every model that
            can be trained, in double precision if the model can be copied), or
            ``"auto"``: the first of these that gives the right product, with a warning if
            others had to be passed over.
        unpack: For batches in other forms: a function of a batch that returns ``(X, y)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit; the message says how to fix it.
        NonDeterministicError: If two products differ.
        WrongDerivativeError: If no way to differentiate gives the right product.
    """

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[[Any, Any], Tensor],
        params: Given,
        data: Iterable[Any],
        *,
        progressbar: bool = False,
        check_deterministic: bool = True,
        num_data: int | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        block_sizes: Sequence[int] | None = None,
        reduction: Literal["mean", "sum"] | Divisor | None = None,
        chunk_size: ChunkSize = "auto",
        process_group: ProcessGroup | None = None,
        differentiation: Way = "auto",
        unpack: Unpack | None = None,
    ) -> None:
        risk = self.risk = Risk.of(
            model_func,
            loss_func,
            params,
            data,
            reduction=reduction,
            num_data=num_data,
            batch_size_fn=batch_size_fn,
            progressbar=progressbar,
            process_group=process_group,
            unpack=unpack,
        )
        super().__init__(
            risk.parameters.space,
            risk.parameters.space,
            dtype=risk.parameters.dtype,
            device=risk.parameters.device,
            symmetric=True,
            psd=self._psd_for(risk.loss),
        )
        check_chunk_size(chunk_size)
        self.chunk_size = chunk_size
        self.diagonal_blocks = _as_blocks(block_sizes, len(risk.parameters.tensors))
        _warn_of_batch_statistics(model_func, risk.data)
        if check_deterministic:
            with risk.context():
                self.risk = settled(risk)
        self._differentiate_by(differentiation)
        if check_deterministic:
            with risk.context():
                found = self.check_deterministic()
                if found is not None:  # on a rank without data there is nothing to prove
                    self.ways, self._proof = found

    # ---------------------------------------------------- what subclasses do

    risk: Risk
    diagonal_blocks: tuple[slice, ...]

    # The derivatives that a product consists of.
    _derivatives: ClassVar[tuple[Kind, ...]] = ("jvp", "hessian")

    @abstractmethod
    def _psd_for(self, loss: Loss) -> bool:
        """Whether the matrix is positive semi-definite for this loss.

        Raises:
            TypeError: If the matrix is not defined for it.
        """

    @abstractmethod
    def _matmat_batch(self, X: Any, y: Any, M: Blocks) -> tuple[Blocks, Aux]:
        """Multiply the matrix of one batch's *summed* loss onto ``M``: ``[K, *n_i]``.

        Returns:
            The product, ``[K, *n_i]``, and :meth:`Risk.tally` of the batch.
        """

    # ------------------------------------------------------------ the product

    @property
    def columns_at_once(self) -> int | None:
        """A chunk if the data is in memory, where another pass over it costs nothing.

        The forward pass is then repeated for each chunk, a tenth of the work for tangents;
        in return, nothing but the result has the width of all columns.
        """
        is_cheap = isinstance(self.risk.data.source, list | tuple)
        if self.chunk_size != "auto" or self.risk.process_group is not None or not is_cheap:
            return None
        return sized("auto", self.shape[0])

    def _matmat(self, M: Blocks) -> Blocks:
        with self.risk.context():
            V = leading(M)
            if V[0].shape[0] == 0:
                return M
            names = self.risk.parameters.names
            product = self._finite(lambda op: op._product(V), V, names)
            if not any(bool(b.any()) for b in product):
                self.risk.check_dependence()
            return trailing(product)

    def _product(self, V: Blocks) -> tuple[Blocks, CurvatureLinearOperator]:
        """The product over all data, and the operator with the way that worked first."""
        (*sums, loss, share), op = self.sum_over_data(V)
        Z = self.risk.divisor(loss, share)
        return [b.div_(Z).to(self.dtype) for b in sums], op

    def sum_over_data(self, V: Blocks) -> tuple[list[Tensor], CurvatureLinearOperator]:
        """Summed product, loss and divisor over all batches and ranks.

        Args:
            V: The columns, ``[K, *n_i]``.

        Returns:
            The sums, and the operator with the way to differentiate that worked first.
        """
        size = sum(v.numel() for v in V) + 2
        with failing_together(size, self.risk.process_group, self.dtype, self.device):
            sums, op = self.sum_over(self.risk.data.batches(f"{type(self).__name__} @"), V)
        return all_reduce(sums, self.risk.process_group, same=V), op

    def sum_over(
        self, batches: Iterable[tuple[Any, Any]], V: Blocks
    ) -> tuple[list[Tensor], CurvatureLinearOperator]:
        """Summed product, loss and divisor of these batches.

        Returns:
            The sums, and the operator with the way to differentiate that worked first.
        """
        wide = torch.promote_types(self.dtype, torch.float32)  # sums of half precision
        sums = [torch.zeros_like(v, dtype=wide) for v in V]
        loss = torch.zeros((), dtype=wide, device=self.device)
        share = torch.zeros((), dtype=torch.float64, device=self.device)
        op: CurvatureLinearOperator = self
        for X, y in batches:
            op, (product, (batch_loss, batch_share)) = op.batch_product(X, y, V)
            for total, part in zip(sums, product, strict=True):
                total += part
            loss += batch_loss
            share += batch_share
        return [*sums, loss, share], op

    def batch_product(
        self, X: Any, y: Any, V: Blocks
    ) -> tuple[CurvatureLinearOperator, tuple[Blocks, Aux]]:
        """The product of one batch, and the operator with the way that worked first."""
        chunk = self._columns_per_pass(X)

        def attempt(way: Differentiation) -> tuple[Blocks, Aux]:
            op = self._with(ways=(way,), chunk_size=chunk)
            if way is not self.ways[0] and self._proof.doubt != UNCHECKED:
                op._proven(X, y)  # this batch is where the other way fails
            if isinstance(way, Differences):
                return op._matmat_differences(X, y, V)
            return op._matmat_blocks(X, y, V)

        ways, result = first_that_works(self.ways, attempt)
        return self._with(ways=ways), result

    def product_by(
        self,
        way: RiskDifferentiation,
        X: Any,
        y: Any,
        V: Blocks,
        at: Parameters | None = None,
    ) -> Blocks:
        """The product of one batch by another way to differentiate.

        Args:
            way: How to differentiate.
            X: Inputs.
            y: Targets.
            V: The columns, ``[K, *n_i]``.
            at: Parameters other than the operator's own.
        """
        risk = self.risk if at is None else replace(self.risk, parameters=at)
        return self._with(ways=(way,), risk=risk)._matmat_blocks(X, y, V)[0]

    def only(self, block: slice) -> CurvatureLinearOperator:
        """The diagonal block of the matrix that belongs to some of the parameters."""
        risk = replace(self.risk, parameters=self.risk.parameters.only(block))
        return self._with(risk=risk, diagonal_blocks=(slice(None),))

    def _matmat_differences(self, X: Any, y: Any, V: Blocks) -> tuple[Blocks, Aux]:
        """In double precision, or in that of the parameters if there can be no copy."""
        try:
            op, X_, y_ = self.in_double(X, y)
            return op._matmat_blocks(X_, y_, V)
        except InaccurateError:
            raise
        except NO_COPY:
            return self._matmat_blocks(X, y, V)

    def _columns_per_pass(self, X: Any) -> int | None:
        """How many columns are multiplied at once."""
        inputs = sum(t.numel() for t in nested.tensors(X))
        return sized(self.chunk_size, max(self.shape[0], inputs))

    def _matmat_blocks(self, X: Any, y: Any, V: Blocks) -> tuple[Blocks, Aux]:
        """Each diagonal block of the matrix on its part of ``V``."""
        product: Blocks = []
        for block in self.diagonal_blocks:
            op = self.only(block) if len(self.diagonal_blocks) > 1 else self
            mine = [
                v.to(p.dtype)
                for v, p in zip(V[block], op.risk.parameters.tensors, strict=True)
            ]
            part, tally = op._matmat_batch(X, y, mine)
            product += part
        return product, tally

    def _transpose(self) -> LinearOperator:
        return self

    # -------------------------------------------------------------- the proof

    def subject(self, X: Any, y: Any) -> Subject:
        """The matrix of one batch, to be proven."""
        risk, chunk = self.risk, self._columns_per_pass(X)

        def multiply(way: Differentiation, V: Blocks) -> Blocks:
            with preserved(self.device):
                return self._with(chunk_size=chunk).product_by(way, X, y, V)

        def symmetry(way: Differentiation) -> None:
            V = probes(risk.parameters, 2)
            check_symmetric(V, multiply(way, V))

        def total(params: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            return (risk.loss.total(risk.predict(params, X), y),), ()

        def in_double() -> Subject:
            op, X_, y_ = self.in_double(X, y)
            return op.subject(X_, y_)

        def near_by() -> Subject:
            there = replace(risk, parameters=risk.parameters.shifted())
            return self._with(risk=there).subject(X, y)

        return Subject(
            risk.parameters,
            multiply,
            lambda _way, _v, _Av: None,
            symmetry,
            total,
            self._derivatives,
            functools.cache(in_double),
            near_by,
        )

    def check_deterministic(self) -> Found | None:
        """Pass over the data twice and compare; see :func:`check_deterministic`."""

        def multiply(ways: tuple[Differentiation, ...] | None, v: Blocks) -> list[Tensor]:
            return self._with(ways=ways or self.ways).sum_over_data(v)[0]

        return check(self.risk, self._proven, multiply)

    def _proven(self, X: Any, y: Any) -> Found:
        """The ways from the first that is right on some data, and its proof."""
        return prove(self.ways, self.subject(X, y), probes(self.risk.parameters))


def _as_blocks(block_sizes: Sequence[int] | None, n: int) -> tuple[slice, ...]:
    """Consecutive slices of the parameters.

    Raises:
        ValueError: If the sizes are not positive or do not sum to ``n``.
    """
    if block_sizes is None:
        block_sizes = [n]
    sizes = list(block_sizes) if isinstance(block_sizes, Iterable) else []
    if any(not isinstance(s, Integral) or s < 1 for s in sizes) or sum(sizes) != n:
        raise ValueError(
            f"Expected block_sizes as positive integers that sum to the number of "
            f"parameters, {n}, got {block_sizes}."
        )
    ends = list(itertools.accumulate(sizes))
    return tuple(slice(e - s, e) for s, e in zip(sizes, ends, strict=True))


def _warn_of_batch_statistics(model_func: Any, data: Data) -> None:
    """Warn of batch norm in train mode: the risk depends on how the data is batched."""
    if not isinstance(model_func, nn.Module):
        return
    if data.num_batches == 1:
        return
    for name, module in model_func.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            warnings.warn(
                f"{type(module).__name__} {name!r} normalises with the statistics of each "
                "batch: the matrix depends on how the data is cut into batches. Call "
                "model.eval(), or pass all data as one batch.",
                stacklevel=2,
            )
            return
