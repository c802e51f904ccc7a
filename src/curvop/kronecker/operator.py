"""KFAC and EKFAC as operators."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final, get_args

import torch
from torch import Tensor, nn

from curvop.curvature import (
    SEED,
    CurvatureLinearOperator,
    GGNLinearOperator,
    Per,
    differences,
)
from curvop.derivatives import leading, trailing
from curvop.kronecker.blocks import eigh, multiply
from curvop.kronecker.factors import Approximation, Factors, exact_diagonals
from curvop.kronecker.fisher import Fisher, FisherType
from curvop.kronecker.inverse import (
    Damping,
    KroneckerInverseLinearOperator,
    Method,
    damped_values,
    inverted,
    per_block,
    singular,
)
from curvop.kronecker.spectrum import Eigendecomposition, eigendecomposition
from curvop.kronecker.storage import read, write
from curvop.operators import Blocks, LinearOperator, tolerance
from curvop.risk import (
    Data,
    Divisor,
    Given,
    Parameters,
    Unpack,
    as_loss,
    as_parameters,
    gradient_over_data,
    listed,
    takes_weight,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Self = TypeVar("Self", bound="FactoredCurvatureLinearOperator")


class FactoredCurvatureLinearOperator(LinearOperator):
    r"""A block-diagonal approximation of GGN or Fisher, one Kronecker product per layer.

    It is computed on construction and stored: the operator does not follow later changes
    of the model. Subclasses implement :meth:`_compute`, and are final.

    Args:
        model_func: An ``nn.Module`` or a callable, as for :class:`GGNLinearOperator`. What
            counts are calls of ``torch.nn.functional``, not module classes; nothing is
            hooked onto the model.
        loss_func: The loss.
        params: Parameters, as for :class:`GGNLinearOperator`; the others are constants.
        data: A re-iterable of mini-batches ``(X, y)``, as for :class:`GGNLinearOperator`.
        fisher_type: ``"type-2"``: the exact GGN. ``"mc"``: targets drawn from the model's
            predictive distribution. ``"empirical"``: gradients of the loss at the targets.
            ``"forward-only"``: no backward pass, the identity in place of ``B`` (Benzing,
            "Gradient descent on neurons and its link to approximate second-order
            optimization", 2022).
        mc_samples: Number of targets drawn for each datum.
        kfac_approx: What weight sharing means: ``"expand"`` or ``"reduce"`` (Eschenhagen et
            al., "Kronecker-factored approximate curvature for modern neural network
            architectures", 2023).
        separate_weight_and_bias: A block for the bias and one for the weight, or one for
            both. Scale and shift of a normalisation are always apart, and so are
            weight and bias of a transposed convolution: they belong to other positions.
        seed: Of the samples. They depend on the content of a datum, not on its place.
        per: What has a gradient of its own in the empirical Fisher, see
            :class:`EFLinearOperator`.
        terms_together: Pull the loss terms of a datum (its tokens, say) back in common
            columns. For ``C`` classes and ``T`` tokens that takes ``C`` passes rather than
            ``T C``, and it is exact where tokens do not mix; in a model with attention
            products of different tokens remain.
        unsupported: Parameters outside of supported layers get the exact ``"diagonal"``,
            with a warning, or are an ``"error"``.
        factor_dtype: Type in which factors are summed and kept, for instance
            ``torch.float64``; by default that of the parameters, at least single precision.
        progressbar: Show a bar over the mini-batches.
        check_deterministic: Pass over the data twice before, compare loss and gradient; and
            look in the first batch whether a layer mixes data, as batch norm in train mode
            does.
        num_data: Number of data, checked at each pass.
        batch_size_fn: Function of ``X`` that tells the number of data in a batch.
        reduction: ``"mean"`` or ``"sum"`` for a callable loss that does not tell, or what
            it divides by; see :class:`GGNLinearOperator`.
        process_group: A ``torch.distributed`` group in which each rank holds its share of
            the data.
        unpack: For batches in another form: function of a batch that returns ``(X, y)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument does not fit, the loss has no such columns, or the data
            has no batch axis; the message says how to mend it.
        NonDeterministicError: If two passes over the data differ.
    """

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[[Any, Any], Tensor],
        params: Given,
        data: Iterable[Any],
        *,
        fisher_type: FisherType = "type-2",
        mc_samples: int = 1,
        kfac_approx: Literal["expand", "reduce"] = "expand",
        separate_weight_and_bias: bool = True,
        seed: int = SEED,
        per: Per = "output",
        terms_together: bool = False,
        unsupported: Literal["diagonal", "error"] = "diagonal",
        factor_dtype: torch.dtype | None = None,
        progressbar: bool = False,
        check_deterministic: bool = True,
        num_data: int | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        reduction: Literal["mean", "sum"] | Divisor | None = None,
        process_group: ProcessGroup | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        _check_choice("fisher_type", fisher_type, get_args(FisherType))
        _check_choice("kfac_approx", kfac_approx, ("expand", "reduce"))
        _check_choice("unsupported", unsupported, ("diagonal", "error"))
        _check_choice("per", per, get_args(Per))
        _check_samples(mc_samples, fisher_type)
        params = listed(params)
        parameters = as_parameters(model_func, params, loss_func)
        common: dict[str, Any] = {
            "progressbar": progressbar,
            "num_data": num_data,
            "batch_size_fn": batch_size_fn,
            "reduction": reduction,
            "process_group": process_group,
            "unpack": unpack,
        }
        if check_deterministic:
            plain: Any = {"differentiation": "backpack", "check_deterministic": False}
            _check_deterministic(
                GGNLinearOperator(model_func, loss_func, params, data, **common, **plain)
            )
        fisher = Fisher(
            parameters,
            as_loss(loss_func, reduction),
            Data(
                data,
                parameters.device,
                num_data,
                batch_size_fn,
                progressbar,
                may_be_empty=process_group is not None,
                unpack=unpack,
                takes_weight=takes_weight(loss_func),
                params=parameters.tensors,
            ),
            fisher_type,
            mc_samples,
            seed,
            per,
            terms_together,
            process_group,
        )
        approximation = Approximation(
            fisher,
            reduce=kfac_approx == "reduce",
            joint=not separate_weight_and_bias,
            dtype=factor_dtype or torch.promote_types(parameters.dtype, torch.float32),
            unsupported=unsupported,
            fallback=exact_diagonals(model_func, loss_func, params, data, fisher, common),
            check=check_deterministic,
        )
        self._hold(self._compute(approximation))

    def _hold(self, factors: Factors) -> None:
        """The only place where fields are set."""
        super().__init__(
            factors.space,
            factors.space,
            dtype=factors.dtype,
            device=factors.device,
            psd=True,
        )
        self._factors = factors
        self._blocks = [
            block.map(lambda t: t.to(factors.dtype)) for block in factors.blocks
        ]

    # ---------------------------------------------------- what subclasses do

    @staticmethod
    @abstractmethod
    def _compute(approximation: Approximation) -> Factors:
        """The factors."""

    # --------------------------------------------------------------- numbers

    def trace(self) -> float:
        """``tr K``."""
        return float(sum(block.trace() for block in self._factors.blocks))

    def frobenius_norm(self) -> float:
        """``‖K‖``."""
        return math.sqrt(sum(float(block.norm_squared()) for block in self._factors.blocks))

    def logdet(self, damping: Damping = 0.0) -> float:
        """``log det(K + damping)``.

        Args:
            damping: See :meth:`inverse`.

        Raises:
            SingularSystemError: If the damped matrix is singular.
        """
        total, factors = 0.0, self._factors
        dampings = per_block(factors, damping)
        for block, d in zip(eigh(factors.blocks), dampings, strict=True):
            values = damped_values(block, d)
            if values is None:
                raise singular(factors, block, d)
            total += float(values.log().sum())
        return total

    def eigh(self) -> Eigendecomposition:
        """All eigenvalues and eigenvectors, from those of the factors.

        Returns:
            ``values`` ``[P]``, ascending, and ``vectors``, an orthogonal operator
            ``[P, P]``.
        """
        return eigendecomposition(self._factors)

    # --------------------------------------------------------------- inverse

    def inverse(
        self, damping: Damping = 0.0, *, method: Method = "exact"
    ) -> KroneckerInverseLinearOperator:
        r"""``(K + damping)⁻¹``.

        Args:
            damping: A number; one for each block (:attr:`block_names`), as a list; or a
                dict by parameter name.
            method: ``"exact"`` adds ``damping I`` to each block, by the eigenbases of its
                factors. ``"heuristic"`` adds ``π √damping I`` to ``A`` and
                ``√damping / π I`` to ``B``, with ``π²`` the ratio of their mean eigenvalues
                (Martens, Grosse, "Optimizing neural networks with Kronecker-factored
                approximate curvature", 2015, section 6.3): half the work per product.
                Blocks without two factors, and EKFAC, are inverted exactly.

        Raises:
            TypeError: If the damping is of the wrong kind.
            ValueError: If it is negative or does not fit.
            SingularSystemError: If a damped block is singular.
        """
        return inverted(self._factors, damping, method)

    # --------------------------------------------------------------- factors

    @property
    def factors(self) -> Factors:
        """The blocks with their factors."""
        return self._factors

    @property
    def block_names(self) -> list[tuple[str, ...]]:
        """The parameters of each block: names, or positions where there are none."""
        names = self.domain_names or [str(i) for i in range(len(self.domain))]
        blocks = self._factors.blocks
        return [tuple(names[i] for i in block.members.positions) for block in blocks]

    @classmethod
    def from_factors(cls: type[Self], factors: Factors) -> Self:
        """An operator from factors, for instance averaged ones: no pass over the data."""
        self = cls.__new__(cls)
        self._hold(factors)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the factors with the names of their parameters.

        Args:
            path: The file; one that ends in ``.safetensors`` is written by safetensors
                (``pip install "curvop[safetensors]"``), any other by ``torch.save``.
        """
        write(path, type(self).__name__, self._factors)

    @classmethod
    def load(
        cls: type[Self],
        path: str | os.PathLike[str],
        model_func: nn.Module | Callable[..., Any],
        params: Given,
    ) -> Self:
        """Read factors that were saved.

        The file has a checksum of its content. One without, written by a version that had
        none, is read as well, by its names, shapes and finite numbers.

        Args:
            path: The file.
            model_func: The model that they belong to.
            params: Its parameters, as on construction. Names, shapes and order must be
                those of the file; vectors have their type and device.

        Raises:
            ValueError: If they are not, or the file is damaged or holds something else.
        """
        at: Parameters = as_parameters(model_func, params)
        return cls.from_factors(read(path, cls.__name__, at))

    # --------------------------------------------------------------- product

    def _matmat(self, M: Blocks) -> Blocks:
        return trailing(multiply(self._blocks, leading(M)))

    def _transpose(self) -> LinearOperator:
        return self


@final
class KFACLinearOperator(FactoredCurvatureLinearOperator):
    r"""Kronecker-factored approximate curvature (KFAC).

    .. math:: K = \operatorname{diag}_{\text{layers}}(B ⊗ A), \qquad
        A = \frac{1}{M} \sum_{n,t} z_{n,t} z_{n,t}^⊤, \qquad
        B = \frac{1}{Z} \sum_{n,t,r} g_{n,t,r} g_{n,t,r}^⊤

    for a layer ``a = W z`` with ``M`` inputs over data ``n`` and positions ``t``, and the
    gradients ``g`` of its outputs, pulled back from the columns ``s_{n,r}`` with
    ``Σ_r s_{n,r} s_{n,r}ᵀ = ∇²_f ℓ_n``; ``Z`` is what the loss divides by over all data
    (Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate
    curvature", 2015; Eschenhagen et al., 2023). See ``docs/kronecker.md`` for ``"reduce"``,
    for what counts as a position, and for where it is exact. Arguments are those of
    ``FactoredCurvatureLinearOperator``.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0]]))]
    >>> K = KFACLinearOperator(model, torch.nn.MSELoss(), model.parameters(), data)
    >>> (K @ torch.tensor([1.0, 0.0])).round()
    tensor([2., 6.])
    """

    @staticmethod
    def _compute(approximation: Approximation) -> Factors:
        return approximation.kfac()


@final
class EKFACLinearOperator(FactoredCurvatureLinearOperator):
    r"""KFAC with corrected eigenvalues (EKFAC).

    .. math:: E = \operatorname{diag}_{\text{layers}}\big( (Q ⊗ U) \operatorname{diag}(λ)
        (Q ⊗ U)^⊤ \big), \qquad
        λ_{jk} = \frac{1}{Z} \sum_{n,r} \big( Q^⊤ G_{n,r} U \big)_{jk}^2

    in the eigenbases ``Q``, ``U`` of the factors ``B``, ``A`` of KFAC, with the gradient
    ``G_{n,r} = Σ_t g_{n,t,r} z_{n,t}ᵀ`` of each datum and column. No other eigenvalues in
    this basis are closer to the exact blocks in the Frobenius norm (George et al., "Fast
    approximate natural gradient descent in a Kronecker-factored eigenbasis", 2018). A
    second pass over the data. Arguments are those of
    ``FactoredCurvatureLinearOperator``; there is no forward-only EKFAC.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0]]))]
    >>> E = EKFACLinearOperator(model, torch.nn.MSELoss(), model.parameters(), data)
    >>> torch.allclose(E @ torch.tensor([1.0, 0.0]), torch.tensor([2.0, 6.0]))
    True
    """

    @staticmethod
    def _compute(approximation: Approximation) -> Factors:
        if approximation.fisher.fisher_type == "forward-only":
            raise ValueError(
                "Expected fisher_type 'type-2', 'mc' or 'empirical', got 'forward-only': "
                "without a backward pass there are no eigenvalues to correct. Take "
                "KFACLinearOperator."
            )
        return approximation.ekfac(approximation.kfac())


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"Expected {name} as one of {list(choices)}, got {value!r}.")


def _check_samples(mc_samples: object, fisher_type: str) -> None:
    if not isinstance(mc_samples, Integral) or isinstance(mc_samples, bool):
        raise TypeError(f"Expected mc_samples as an integer, got {mc_samples!r}.")
    if int(mc_samples) < 1 or (int(mc_samples) > 1 and fisher_type != "mc"):
        raise ValueError(
            "Expected mc_samples of at least 1, and of more only for fisher_type='mc', got "
            f"{mc_samples} for {fisher_type!r}."
        )


def _check_deterministic(op: CurvatureLinearOperator) -> None:
    """Pass over the data twice and compare loss and gradient: no more is needed here.

    Args:
        op: An operator of the same risk, not checked yet.

    Raises:
        NonDeterministicError: If the passes differ, with what differed and where.
        ValueError: If the loss is not finite, or the data does not fit.
    """
    with op.risk.context():
        first = gradient_over_data(op.risk, "determinism check")
        op.risk.divisor(*first[-2:])
        second = gradient_over_data(op.risk, "determinism check")
        rounding = tolerance(*(p.dtype for p in op.risk.parameters.tensors))
        if any(differences(first, second, rounding)):
            op.check_deterministic()  # a gradient may be rounding: products tell
