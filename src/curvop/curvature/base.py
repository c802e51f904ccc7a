"""CurvatureLinearOperator: iterate over the data, scale, reduce."""

from __future__ import annotations

import copy
import itertools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from curvop.curvature import nested
from curvop.curvature.columns import (
    ChunkSize,
    check_chunk_size,
    leading,
    sized,
    trailing,
)
from curvop.curvature.culprit import Kind
from curvop.curvature.data import Data
from curvop.curvature.dependence import check_dependence
from curvop.curvature.determinism import check_deterministic as check
from curvop.curvature.differences import Differences, InaccurateError
from curvop.curvature.differentiation import (
    CALLED,
    Aux,
    Differentiation,
    RiskDifferentiation,
    Way,
    candidates,
    finite_product,
    first_that_works,
)
from curvop.curvature.distributed import all_reduce, failing_together
from curvop.curvature.losses import Loss, as_loss
from curvop.curvature.parameters import Given, as_parameters
from curvop.curvature.proof import UNCHECKED, Proof, probes, prove, subject
from curvop.curvature.reading import settled
from curvop.curvature.reduction import Divisor, total_divisor
from curvop.curvature.replica import NO_COPY, Source, doubled
from curvop.curvature.surroundings import surroundings
from curvop.curvature.unpacking import Unpack, takes_weight
from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from curvop.curvature.linearization import LinearizedLinearOperator


class CurvatureLinearOperator(LinearOperator):
    r"""A symmetric curvature matrix of an empirical risk, summed over mini-batches.

    .. math:: L(θ) = \frac{1}{Z} \sum_n ℓ(f_θ(x_n), y_n)

    ``Z`` is what the reduction of the loss divides by over the *whole* data set.
    However the data is cut into mini-batches, the operator equals the one of the loss on
    the concatenated data.

    Subclasses implement :meth:`_matmat_batch`, and are final.

    Args:
        model_func: An ``nn.Module``; a callable ``X -> prediction`` over the given
            parameters; or, with ``params`` a dict, a callable
            ``(params, X) -> prediction``. Left exactly as found. Of a prediction with
            an attribute ``logits``, as in ``transformers``, those are taken.
        loss_func: A torch loss module, or a callable ``(prediction, y) -> scalar``; or
            ``(prediction, y, weight)``, for batches with weights. It may have parameters
            of its own, and depend on those of the model: the Hessian and the empirical
            Fisher follow, matrices of the prediction alone refuse.
        params: List of tensors (their order is the order of the blocks), dict from names
            to tensors, or ``model.named_parameters()``; a module stands for all of its
            parameters that require a gradient. Other parameters are constants.
        data: A re-iterable of mini-batches ``(X, y)``: tensors, or nested tuples, lists
            and mappings of tensors, taken as constants and moved to the device of the
            parameters. Of a mapping with an entry ``labels``, ``targets``, ``target`` or
            ``y``, that is ``y``, and ``X`` the mapping without it.
        progressbar: Show a bar over the mini-batches of each product.
        check_deterministic: Pass over the data twice on construction and compare loss
            and gradient; also checks what is assumed about a loss of your own, and proves
            on a few data that products are right: see :attr:`proof`.
        num_data: Number of data, checked at each pass.
        batch_size_fn: Function of ``X`` that tells the number of data in a batch; by
            default the leading axis.
        block_sizes: Numbers of consecutive parameters per block; the operator is then
            the block-diagonal of the matrix. By default one block: the full matrix.
        reduction: ``"mean"`` or ``"sum"`` for a callable loss that does not tell, or a
            callable ``(prediction, y) ->`` the number that the mean was divided by.
        chunk_size: Number of columns that are multiplied at once; ``None`` for all.
            ``"auto"`` takes eight, so that the activations' tangents take at most eight
            times the memory of the activations; of small models, where that is little,
            as many as keep a million parameters or inputs in a chunk; Hessians of wide
            convolutional networks on a CPU one after the other, which is quicker.
        process_group: A ``torch.distributed`` group in which each rank holds its share
            of the data (a rank may hold none). Every rank multiplies the same vector,
            and the divisor is global. One collective per product.
        differentiation: ``"func"`` (``torch.func``: forward mode and vmap),
            ``"backpack"`` (double backward over one graph: any op, any callable),
            ``"differences"`` (central differences of first derivatives: whatever can be
            trained, in double precision where the model can be copied), or ``"auto"``:
            the first that gives the right product, with a warning when that is not the
            first of all.
        unpack: For batches in another form: function of a batch that returns ``(X, y)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit; the message says how to mend it.
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
        self._parameters = as_parameters(model_func, params, loss_func)
        self._loss = as_loss(loss_func, reduction)
        self._data = Data(
            data,
            self._parameters.device,
            num_data,
            batch_size_fn,
            progressbar,
            may_be_empty=process_group is not None,
            unpack=unpack,
            takes_weight=takes_weight(loss_func),
            params=self._parameters.tensors,
        )
        super().__init__(
            self._parameters.space,
            self._parameters.space,
            dtype=self._parameters.dtype,
            device=self._parameters.device,
            symmetric=True,
            psd=self._psd_for(self._loss),
        )
        check_chunk_size(chunk_size)
        self._chunk_size = chunk_size
        self._process_group = process_group
        self._blocks = _as_blocks(block_sizes, len(self._parameters.tensors))
        _warn_of_batch_statistics(model_func, self._data)
        if check_deterministic:
            with surroundings(self._data):
                self._parameters = settled(self)
        self._source = Source(model_func, loss_func, reduction)
        self._ways: tuple[Differentiation, ...]
        self._ways = candidates(differentiation, self._parameters)
        self._proof = Proof(CALLED[self._ways[0].name], doubt=UNCHECKED)
        if check_deterministic:
            with surroundings(self._data):
                self._ways, self._proof = check(self)

    @property
    def differentiation(self) -> Way:
        """The way that products are differentiated."""
        return CALLED[self._ways[0].name]

    @property
    def proof(self) -> Proof:
        """What is known of the products, from construction.

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
    ) -> LinearizedLinearOperator:
        """The same matrix, with the work of a data pass kept for many products.

        GGN and empirical Fisher keep the rows of the Jacobian where those are few, or
        the factors ``δ ⊗ z`` of each linear layer and convolution where that takes fewer
        multiplications: a product then needs no pass through the network. Otherwise the
        product is recorded once per shape of batch and split: what depends on parameters
        and data only runs once and is kept, what depends on the vector is replayed.
        Small batches are put together. Models that cannot be recorded keep autograd's
        graphs instead. Whatever the form, its first product is compared with the
        operator's own. The operator itself keeps nothing; the value that is returned
        holds the data.

        Args:
            memory_budget: Bytes to keep at most, beyond parameters and data; what does
                not fit is recomputed at each product. By default everything is kept.
            num_products: Number of products to come. Recording is chosen only when they
                repay it.
            batch_size: Number of data up to which batches are put together; by default
                as many as the caches hold.
            compile: Compile the recorded product with ``torch.compile``, ``True`` or the
                name of a backend; several columns are compiled when they first come.

        Returns:
            An operator that tells ``nbytes()``, ``form``, ``setup_seconds`` and
            ``compile_seconds``. It refuses to multiply once a parameter has
            been changed in place.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If one is out of range, or the data does not fit; see the class.

        >>> import torch
        >>> from curvop import HessianLinearOperator
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))]
        >>> H = HessianLinearOperator(lambda X: X @ w**2, torch.nn.MSELoss(), [w], data)
        >>> H.linearize() @ torch.tensor([1.0, 1.0])
        tensor([12.,  0.])
        """
        from curvop.curvature.linearization import linearize

        return linearize(
            self,
            memory_budget=memory_budget,
            num_products=num_products,
            batch_size=batch_size,
            compile=compile,
        )

    # ---------------------------------------------------- what subclasses do

    # Which derivatives products are made of.
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
            The product, ``[K, *n_i]``, and what :meth:`_tally` tells of the batch.
        """

    # ------------------------------------------------ what subclasses build on

    @property
    def _differentiate(self) -> RiskDifferentiation:
        """The way to differentiate."""
        return self._ways[0]

    def _predict(self, params: Sequence[Tensor], X: Any) -> Any:
        return self._parameters.model(params, X)

    def _loss_of(self, X: Any, y: Any) -> Tensor:
        """Summed loss of a batch."""
        with torch.no_grad():
            prediction = self._predict(self._parameters.tensors, X)
            nested.differentiable(prediction)
            return self._loss.total(prediction, y)

    def _tally(self, prediction: Any, y: Any, total: Tensor | None = None) -> Aux:
        """Summed loss of a batch, and its share of the divisor."""
        if total is None:
            total = self._loss.total(prediction, y)
        share = self._loss.divisor(prediction, y)
        share = torch.as_tensor(share, dtype=torch.float64, device=total.device)
        return total.detach(), share

    # ------------------------------------------------------------ the product

    @property
    def _columns_at_once(self) -> int | None:
        """A chunk where passing over the data again costs nothing: it is in memory.

        The primal work is then done for each chunk, a tenth of the tangents' work; but of
        all columns at once only the result exists.
        """
        is_cheap = isinstance(self._data.source, list | tuple)
        if self._chunk_size != "auto" or self._process_group is not None or not is_cheap:
            return None
        return sized("auto", self.shape[0])

    def _matmat(self, M: Blocks) -> Blocks:
        with surroundings(self._data):
            V = leading(M)
            if V[0].shape[0] == 0:
                return M
            names = self._parameters.names
            product = finite_product(self, lambda op: op._product(V), V, names)
            if not any(bool(b.any()) for b in product):
                check_dependence(
                    self._parameters, self._data, self._loss, self._process_group
                )
            return trailing(product)

    def _product(self, V: Blocks) -> tuple[Blocks, CurvatureLinearOperator]:
        """The product over all data, and the operator that knows which way works."""
        (*sums, loss, share), op = self._sum_over_all(V)
        Z = self._divisor(loss, share)
        return [b.div_(Z).to(self.dtype) for b in sums], op

    def _divisor(self, loss: Tensor, share: Tensor) -> Tensor:
        """``Z``, once the loss is known to be finite.

        Raises:
            ValueError: If the loss is not finite, or a mean over nothing.
        """
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"Expected a finite loss over the data, got {float(loss)}. Look for NaN "
                "or infinite inputs, targets or parameters."
            )
        return total_divisor(self._loss.reduction, share)

    def _sum_over_all(self, V: Blocks) -> tuple[list[Tensor], CurvatureLinearOperator]:
        """Summed product, loss and divisor over all batches and ranks.

        Args:
            V: What to multiply onto, ``[K, *n_i]``.

        Returns:
            The sums, and the operator that knows which way to differentiate works.
        """
        size = sum(v.numel() for v in V) + 2
        with failing_together(size, self._process_group, self.dtype, self.device):
            sums, op = self._sum_over(self._data.batches(f"{type(self).__name__} @"), V)
        return all_reduce(sums, self._process_group, same=V), op

    def _sum_over(
        self, batches: Iterable[tuple[Any, Any]], V: Blocks
    ) -> tuple[list[Tensor], CurvatureLinearOperator]:
        """Summed product, loss and divisor of these batches.

        Returns:
            The sums, and the operator that knows which way to differentiate works.
        """
        wide = torch.promote_types(self.dtype, torch.float32)  # sums of half precision
        sums = [torch.zeros_like(v, dtype=wide) for v in V]
        loss = torch.zeros((), dtype=wide, device=self.device)
        share = torch.zeros((), dtype=torch.float64, device=self.device)
        op: CurvatureLinearOperator = self
        for X, y in batches:
            op, (product, (batch_loss, batch_share)) = op._matmat_one(X, y, V)
            for total, part in zip(sums, product, strict=True):
                total += part
            loss += batch_loss
            share += batch_share
        return [*sums, loss, share], op

    def _matmat_one(
        self, X: Any, y: Any, V: Blocks
    ) -> tuple[CurvatureLinearOperator, tuple[Blocks, Aux]]:
        """The product of one batch, and the operator for the next: it knows the way."""
        chunk = self._columns_per_pass(X)

        def attempt(way: Differentiation) -> tuple[Blocks, Aux]:
            op = self._with(_ways=(way,), _chunk_size=chunk)
            if way is not self._ways[0] and self._proof.doubt != UNCHECKED:
                prove((way,), subject(op, X, y), probes(op))  # what others fail on is here
            if isinstance(way, Differences):
                return op._matmat_differences(X, y, V)
            return op._matmat_blocks(X, y, V)

        ways, result = first_that_works(self._ways, attempt)
        return self._with(_ways=ways), result

    def _matmat_differences(self, X: Any, y: Any, V: Blocks) -> tuple[Blocks, Aux]:
        """In double precision, or in their own where no copy can be made."""
        try:
            op, X_, y_ = doubled(self, X, y)
            return op._matmat_blocks(X_, y_, V)
        except InaccurateError:
            raise
        except NO_COPY:
            return self._matmat_blocks(X, y, V)

    def _columns_per_pass(self, X: Any) -> int | None:
        """How many columns are multiplied at once."""
        inputs = sum(t.numel() for t in nested.tensors(X))
        return sized(self._chunk_size, max(self.shape[0], inputs))

    def _matmat_blocks(self, X: Any, y: Any, V: Blocks) -> tuple[Blocks, Aux]:
        """Each diagonal block of the matrix on its part of ``V``."""
        product: Blocks = []
        for block in self._blocks:
            op = self
            if len(self._blocks) > 1:
                op = self._with(_parameters=self._parameters.only(block))
            mine = [
                v.to(p.dtype) for v, p in zip(V[block], op._parameters.tensors, strict=True)
            ]
            part, tally = op._matmat_batch(X, y, mine)
            product += part
        return product, tally

    def _transpose(self) -> LinearOperator:
        return self

    def _with(self, **fields: Any) -> CurvatureLinearOperator:
        """The same operator with other values for some fields."""
        other = copy.copy(self)
        other.__dict__.update(fields)
        return other


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
    """Batch norm in train mode makes the risk depend on how the data is cut."""
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
