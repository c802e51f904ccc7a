"""Losses: every torch loss module with its options, their functions, and callables."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import EFLinearOperator, GGNLinearOperator, HessianLinearOperator

from . import dense
from .dense import Loss, Waves, integers, normal

N, C, T = 7, 3, 2  # data, classes, positions per datum
REDUCTIONS = ("mean", "sum")
X = normal(N, 2, seed=1)


@dataclass(frozen=True, eq=False)
class LossCase:
    """A loss with a model and targets that fit it.

    Attributes:
        name: Shown by pytest.
        loss: What curvop gets.
        y: Targets, the data on the leading axis.
        shape: Shape of the prediction for one datum.
        link: Applied to the prediction by the model.
        reduction: What curvop gets as ``reduction``.
        truth: ``loss`` written so that torch can differentiate it twice.
        terms: Its unreduced terms; ``None`` if the loss does not offer them.
    """

    name: str
    loss: Any
    y: Any
    shape: tuple[int, ...] = (C,)
    link: Callable[[Tensor], Any] | None = None
    reduction: Any = None
    truth: Loss | None = None
    terms: Loss | None = None

    @property
    def scalar(self) -> Loss:
        """The loss to differentiate for the truth."""
        return self.truth or self.loss

    def has(self, matrix: str) -> bool:
        """Whether this matrix is defined for the loss."""
        return matrix != "ef" or self.terms is not None

    @property
    def model(self) -> Waves:
        """A model whose predictions fit the loss."""
        return Waves(X.shape[1], self.shape, self.link)


# ----------------------------------------------------------------------- targets

LABELS = torch.tensor([0, 1, 1, 2, 0, 2, 1])
POSITIONS = torch.tensor([[0, 1], [1, 1], [1, 2], [2, 0], [0, 0], [2, 1], [1, 0]])
REAL = normal(N, C, seed=2)
SIGNS = REAL.sign()
BINARY = (REAL > 0).double()
COUNTS = integers(5, N, C, seed=3).double()
SOFT = REAL.softmax(1)
SOFT_POSITIONS = normal(N, C, T, seed=4).softmax(1)
LABEL_SETS = torch.tensor(
    [[0, -1, -1], [1, 2, -1], [2, 0, -1], [0, 1, 2], [1, -1, 0], [-1, 0, 1], [2, 1, -1]]
)
CLASS_WEIGHT = torch.tensor([0.0, 2.0, 0.6], dtype=torch.float64)
WEIGHT = torch.tensor([0.3, 2.0, 1.5], dtype=torch.float64)


def ignored(y: Tensor, index: int) -> Tensor:
    """Ignore the first two data entirely, and one entry of the third."""
    y = y.clone()
    y[:2] = index
    y[2].view(-1)[0] = index
    return y


# ------------------------------------------------------------------ torch modules


def grid(**options: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """All combinations of options."""
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values, strict=True))


def title(loss: str, options: dict[str, Any], *more: str) -> str:
    """A test id."""
    shown = [f"{k}={'…' if isinstance(v, Tensor) else v}" for k, v in options.items()]
    return "-".join([loss, *more, *shown])


def unreduced(module: nn.Module) -> Loss:
    """A torch loss module with ``reduction="none"``."""
    other = copy.copy(module)
    other.reduction = "none"
    return other


def of_module(module: type[nn.Module], y: Any, note: str = "", **fields: Any) -> Any:
    """Cases of one module for each given combination of its options."""

    def cases(*options: dict[str, Any]) -> Iterator[LossCase]:
        for option in options:
            loss = module(**option)
            name = title(module.__name__, option, *[note] * bool(note))
            case = LossCase(name, loss, y, **fields)
            yield case if case.terms else replace(case, terms=unreduced(loss))

    return cases


def class_losses() -> Iterator[LossCase]:
    """Cross-entropy and NLL: weights, ignored targets, smoothing, positions."""
    common = {"weight": (None, CLASS_WEIGHT), "reduction": REDUCTIONS}
    smooth = {"label_smoothing": (0.0, 0.2), **common}
    for index in (None, -100, 1, 255):
        ignore = {} if index is None else {"ignore_index": (index,)}
        for y, shape in ((LABELS, (C,)), (POSITIONS, (C, T))):
            targets = y if index is None else ignored(y, index)
            where = "positions" * (shape == (C, T))
            entropy = of_module(nn.CrossEntropyLoss, targets, where, shape=shape)
            yield from entropy(*grid(**smooth, **ignore))
            likelihood = of_module(
                nn.NLLLoss, targets, where, shape=shape, link=log_probabilities
            )
            yield from likelihood(*grid(**common, **ignore))
    yield from of_module(nn.CrossEntropyLoss, SOFT, "soft")(*grid(**smooth))
    yield from of_module(
        nn.CrossEntropyLoss, SOFT_POSITIONS, "soft-positions", shape=(C, T)
    )(*grid(**smooth))


def log_probabilities(prediction: Tensor) -> Tensor:
    return prediction.log_softmax(1)


def element_losses() -> Iterator[LossCase]:
    """Losses with one term per element."""
    red = {"reduction": REDUCTIONS}
    yield from of_module(nn.MSELoss, REAL)(*grid(**red))
    yield from of_module(nn.MSELoss, REAL[:, 0], "[N]", shape=())(*grid(**red))
    yield from of_module(nn.L1Loss, REAL)(*grid(**red))
    yield from of_module(nn.SmoothL1Loss, REAL)(*grid(beta=(0.0, 0.4, 3.0), **red))
    yield from of_module(nn.HuberLoss, REAL)(*grid(delta=(0.4, 3.0), **red))
    weights = {"weight": (None, WEIGHT), **red}
    yield from of_module(nn.BCELoss, BINARY, link=torch.sigmoid)(*grid(**weights))
    yield from of_module(nn.BCEWithLogitsLoss, BINARY)(
        *grid(**weights, pos_weight=(None, WEIGHT.flip(0)))
    )
    yield from of_module(nn.PoissonNLLLoss, COUNTS, link=torch.exp)(
        *grid(log_input=(False,), full=(False, True), eps=(1e-8, 0.1), **red)
    )
    yield from of_module(nn.PoissonNLLLoss, COUNTS)(*grid(full=(False, True), **red))
    many = {"reduction": (*REDUCTIONS, "batchmean")}
    for log_target, y in ((False, SOFT), (True, SOFT.log())):
        yield from of_module(nn.KLDivLoss, y, link=log_probabilities)(
            *grid(log_target=(log_target,), **many)
        )
    yield from of_module(
        nn.KLDivLoss, SOFT_POSITIONS, "positions", shape=(C, T), link=log_probabilities
    )(*grid(**many))
    yield from of_module(nn.HingeEmbeddingLoss, SIGNS)(*grid(margin=(1.0, 0.3), **red))
    yield from of_module(nn.SoftMarginLoss, SIGNS)(*grid(**red))


def set_losses() -> Iterator[LossCase]:
    """Losses with one term per datum, over its classes."""
    red = {"reduction": REDUCTIONS}
    yield from of_module(nn.MultiLabelSoftMarginLoss, BINARY)(
        *grid(weight=(None, WEIGHT), **red)
    )
    for options in grid(p=(1, 2), margin=(1.0, 0.6), weight=(None, CLASS_WEIGHT), **red):
        terms = functools.partial(multi_margin_terms, **options)
        name = title("MultiMarginLoss", options)
        loss = nn.MultiMarginLoss(**options)
        yield LossCase(name, loss, LABELS, **_reduced(terms, options["reduction"]))
    for options in grid(**red):
        yield LossCase(
            title("MultiLabelMarginLoss", options),
            nn.MultiLabelMarginLoss(**options),
            LABEL_SETS,
            **_reduced(multilabel_margin_terms, options["reduction"]),
        )


def _reduced(terms: Loss, reduction: str) -> dict[str, Loss]:
    """Truth of a loss over the data from its terms."""
    return {
        "truth": lambda p, y: getattr(terms(p, y), reduction)(),
        "terms": terms,
    }


def multi_margin_terms(
    prediction: Tensor,
    y: Tensor,
    p: int,
    margin: float,
    weight: Tensor | None,
    reduction: str = "",
) -> Tensor:
    """The terms of MultiMarginLoss; torch's own have no second derivative."""
    violation = (margin - prediction.gather(1, y[:, None]) + prediction).relu() ** p
    others = 1 - F.one_hot(y, prediction.shape[1])
    terms = (violation * others).sum(1) / prediction.shape[1]
    return terms if weight is None else weight[y] * terms


def multilabel_margin_terms(prediction: Tensor, y: Tensor) -> Tensor:
    """The terms of MultiLabelMarginLoss; torch's own have no second derivative."""
    terms = []
    for x, labels in zip(prediction, y.tolist(), strict=True):
        inside = labels[: [*labels, -1].index(-1)]
        outside = [c for c in range(len(x)) if c not in inside]
        violations = [(1 - x[i] + x[j]).relu() for i in inside for j in outside]
        terms.append(sum(violations, 0 * x.sum()) / len(x))
    return torch.stack(terms)


# --------------------------------------------------------- functions and callables


def functions() -> Iterator[LossCase]:
    """``torch.nn.functional``, plain and in ``functools.partial``."""
    plain = [
        (F.cross_entropy, LABELS, (C,), None),
        (F.nll_loss, POSITIONS, (C, T), log_probabilities),
        (F.mse_loss, REAL, (C,), None),
        (F.l1_loss, REAL, (C,), None),
        (F.smooth_l1_loss, REAL, (C,), None),
        (F.huber_loss, REAL, (C,), None),
        (F.binary_cross_entropy, BINARY, (C,), torch.sigmoid),
        (F.binary_cross_entropy_with_logits, BINARY, (C,), None),
        (F.poisson_nll_loss, COUNTS, (C,), None),
        (F.kl_div, SOFT, (C,), log_probabilities),
        (F.hinge_embedding_loss, SIGNS, (C,), None),
        (F.soft_margin_loss, SIGNS, (C,), None),
        (F.multilabel_soft_margin_loss, BINARY, (C,), None),
    ]
    for function, y, shape, link in plain:
        yield of_function(function, {}, y, shape, link)
    labels = ignored(POSITIONS, 0)
    for options in grid(
        ignore_index=(0,),
        weight=(None, WEIGHT),
        label_smoothing=(0.0, 0.2),
        reduction=REDUCTIONS,
    ):
        yield of_function(F.cross_entropy, options, labels, (C, T))
    for options in grid(ignore_index=(0,), weight=(WEIGHT,)):
        yield of_function(F.cross_entropy, options, ignored(LABELS, 0))
    yield of_function(F.cross_entropy, {"weight": WEIGHT}, SOFT)
    yield of_function(F.mse_loss, {"reduction": "sum"}, REAL)
    yield of_function(F.huber_loss, {"delta": 0.3}, REAL)
    yield of_function(F.smooth_l1_loss, {"beta": 0.3}, REAL)
    kl = {"reduction": "batchmean", "log_target": True}
    yield of_function(F.kl_div, kl, SOFT.log(), link=log_probabilities)
    pos = {"pos_weight": WEIGHT, "weight": WEIGHT.flip(0)}
    yield of_function(F.binary_cross_entropy_with_logits, pos, BINARY)
    nested = functools.partial(functools.partial(F.cross_entropy, weight=WEIGHT))
    yield LossCase(
        "partial-of-partial",
        functools.partial(nested, ignore_index=0),
        ignored(LABELS, 0),
        terms=functools.partial(nested, ignore_index=0, reduction="none"),
    )


def of_function(
    function: Loss,
    options: dict[str, Any],
    y: Any,
    shape: tuple[int, ...] = (C,),
    link: Callable[[Tensor], Any] | None = None,
) -> LossCase:
    """One case of a function of ``torch.nn.functional``."""
    loss = functools.partial(function, **options) if options else function
    terms = functools.partial(function, **{**options, "reduction": "none"})
    name = title(function.__name__, options, f"{len(shape)}d")
    return LossCase(name, loss, y, shape, link, terms=terms)


class RelativeSquare(nn.Module):
    """A custom loss module with an attribute ``reduction``."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        terms = ((prediction - y) ** 2 / (1 + y**2)).sum(1)
        return terms if self.reduction == "none" else getattr(terms, self.reduction)()


class RenamedEntropy(nn.CrossEntropyLoss):
    """A subclass that changes nothing."""


class TemperedEntropy(nn.CrossEntropyLoss):
    """A subclass that changes the formula, not the reduction."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input / 3, target)


class Focal(nn.CrossEntropyLoss):
    """A subclass that reduces by itself: a plain mean of its terms."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        entropy = F.cross_entropy(input, target, reduction="none")
        terms = (1 - (-entropy).exp()) ** 2 * entropy
        return terms if self.reduction == "none" else getattr(terms, self.reduction)()


def quartic(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """A callable with a keyword ``reduction``."""
    terms = (prediction - y) ** 4
    return terms if reduction == "none" else getattr(terms, reduction)()


def in_place(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """A loss whose terms are written in place."""
    terms = torch.zeros(prediction.shape[0], dtype=prediction.dtype)
    terms += prediction[:, 0] * y[:, 0]
    terms[:] += ((prediction - y) ** 2).sum(1)
    terms.mul_(prediction[:, 1]).exp_()
    return terms if reduction == "none" else getattr(terms, reduction)()


def mean_in_place(prediction: Tensor, y: Tensor) -> Tensor:
    """A scalar that is accumulated in place."""
    value = prediction.new_zeros(())
    for p, t in zip(prediction, y, strict=True):
        value += ((p - t) ** 3).sum()
    return value.div_(len(prediction))


def gaussian_nll(prediction: Any, y: Tensor, reduction: str = "mean") -> Tensor:
    mean, var = prediction
    return F.gaussian_nll_loss(mean, y, var, full=True, reduction=reduction)


def cosine(prediction: Any, y: Tensor, reduction: str = "mean") -> Tensor:
    a, b = prediction
    return F.cosine_embedding_loss(a, b, y, margin=0.1, reduction=reduction)


def triplet(prediction: Any, y: Any, reduction: str = "mean") -> Tensor:
    return F.triplet_margin_loss(*prediction, margin=2.0, reduction=reduction)


def ranking(prediction: Any, y: Any, reduction: str = "mean") -> Tensor:
    return F.margin_ranking_loss(*prediction, y, margin=0.2, reduction=reduction)


def ctc(prediction: Tensor, y: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """CTC; for the mean torch divides each term by the length of its target."""
    log_probs = prediction.log_softmax(-1).transpose(0, 1)  # [time, N, classes]
    lengths = torch.full((len(prediction),), prediction.shape[1])
    terms = F.ctc_loss(log_probs, y["labels"], lengths, y["lengths"], reduction="none")
    terms = terms / y["lengths"]
    return terms if reduction == "none" else getattr(terms, reduction)()


def ctc_terms(prediction: Tensor, y: dict[str, Tensor]) -> Tensor:
    """The same, by the sum over all alignments."""
    log_probs = prediction.log_softmax(-1)
    terms = []
    for scores, labels, length in zip(log_probs, y["labels"], y["lengths"], strict=True):
        target = tuple(labels[:length].tolist())
        paths = itertools.product(range(scores.shape[1]), repeat=scores.shape[0])
        values = [
            sum(scores[t, c] for t, c in enumerate(path))
            for path in paths
            if tuple(c for c, _ in itertools.groupby(path) if c) == target
        ]
        terms.append(-torch.stack(values).logsumexp(0) / length)
    return torch.stack(terms)


SPOKEN = {
    "labels": torch.tensor([[1, 2], [2, 1], [1, 0], [2, 0], [1, 2], [2, 2], [1, 1]]),
    "lengths": torch.tensor([2, 2, 1, 1, 2, 1, 1]),
}


def with_keyword(loss: Loss, y: Any, **fields: Any) -> Iterator[LossCase]:
    """A callable with a keyword ``reduction``: its default, and the other one."""
    terms = fields.pop("terms", functools.partial(loss, reduction="none"))
    yield LossCase(loss.__name__, loss, y, terms=terms, **fields)
    by_sum = functools.partial(loss, reduction="sum")
    yield LossCase(f"{loss.__name__}-sum", by_sum, y, terms=terms, **fields)


def callables() -> Iterator[LossCase]:
    """What users write themselves."""
    yield from with_keyword(quartic, REAL)
    yield from with_keyword(in_place, REAL)
    yield from with_keyword(
        gaussian_nll, REAL[:, 0], shape=(2,), link=lambda t: (t[:, 0], t[:, 1].exp())
    )
    yield from with_keyword(
        cosine, SIGNS[:, 0], shape=(4,), link=lambda t: (t[:, :2], t[:, 2:])
    )
    yield from with_keyword(triplet, REAL, shape=(6,), link=lambda t: t.chunk(3, 1))
    yield from with_keyword(
        ranking, SIGNS[:, 0], shape=(2,), link=lambda t: (t[:, 0], t[:, 1])
    )
    for case in with_keyword(ctc, SPOKEN, shape=(3, C)):
        reduction = "sum" if case.name.endswith("sum") else "mean"
        yield replace(case, **_reduced(ctc_terms, reduction))
    for reduction in REDUCTIONS:
        yield from of_module(RelativeSquare, REAL)({"reduction": reduction})
        yield from of_module(RenamedEntropy, ignored(POSITIONS, 1), shape=(C, T))(
            {"reduction": reduction, "weight": WEIGHT, "ignore_index": 1}
        )
        yield from of_module(TemperedEntropy, LABELS)({"reduction": reduction})
        yield from of_module(Focal, LABELS)({"reduction": reduction})
    yield LossCase(
        "opaque-mean", lambda p, y: ((p - y) ** 4).mean(), REAL, reduction="mean"
    )
    yield LossCase("opaque-sum", lambda p, y: ((p - y) ** 4).sum(), REAL, reduction="sum")
    yield LossCase(
        "opaque-positions",
        lambda p, y: F.cross_entropy(p, y),
        POSITIONS,
        (C, T),
        reduction="mean",
    )
    yield LossCase("opaque-in-place", mean_in_place, REAL, reduction="mean")
    yield LossCase(
        "opaque-divisor",
        lambda p, y: F.cross_entropy(p, y, ignore_index=0),
        ignored(POSITIONS, 0),
        (C, T),
        reduction=lambda p, y: (y != 0).sum(),
    )
    yield LossCase(
        "keyword-divisor",
        functools.partial(quartic),
        REAL,
        reduction=lambda p, y: float(y.numel()),
        terms=functools.partial(quartic, reduction="none"),
    )
    tempered = {"weight": WEIGHT, "ignore_index": 1}
    yield LossCase(
        "subclass-divisor",
        TemperedEntropy(**tempered),
        ignored(LABELS, 1),
        reduction=lambda p, y: (WEIGHT[y] * (y != 1)).sum(),
        terms=TemperedEntropy(**tempered, reduction="none"),
    )


CASES = [
    *class_losses(),
    *element_losses(),
    *set_losses(),
    *functions(),
    *callables(),
]


# --------------------------------------------------------- the two sides to compare

OPERATORS = {
    "hessian": HessianLinearOperator,
    "ggn": GGNLinearOperator,
    "ef": EFLinearOperator,
}


def operator(
    name: str, case: LossCase, parts: Sequence[Any], way: str, **options: Any
) -> Any:
    """curvop's operator on mini-batches."""
    model = case.model
    return OPERATORS[name](
        model,
        case.loss,
        list(model.parameters()),
        dense.batches(X, case.y, parts),
        reduction=case.reduction,
        differentiation=way,
        **options,
    )


@functools.cache
def truth(name: str, case: LossCase) -> Tensor:
    """The dense matrix of the loss on all data."""
    model = case.model
    params = list(model.parameters())
    if name == "ef":
        assert case.terms is not None
        return dense.empirical_fisher(model, case.scalar, case.terms, params, X, case.y)
    matrix = dense.hessian if name == "hessian" else dense.ggn
    return matrix(model, case.scalar, params, X, case.y)
