"""The proof: each way to differentiate, compared with differences of first derivatives.

Training relies on first derivatives, so those are taken to be right; hand-written rules for
second derivatives may be wrong without notice. A way is used if its product with a probe
agrees with :class:`Differences`, in double precision on a few data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from curvop.autograd import gradient
from curvop.curvature.culprit import Kind, culprit
from curvop.curvature.symmetry import check_columns
from curvop.derivatives import (
    CALLED,
    DOES,
    Differences,
    Differentiable,
    Differentiation,
    InaccurateError,
    Way,
    WrongDerivativeError,
    first_line,
    first_that_works,
    only_tensor,
    vectorised,
)
from curvop.operators import Blocks, norm, norms, probe
from curvop.risk import NO_COPY, Parameters, constant, nested

FEW = 4  # data that a way is proven on; two of small batches
# Relative error that counts as rounding, by type.
EXACT = 1e-6
ROUNDED = {torch.float64: EXACT, torch.float32: 1e-3}
ROUGH = 0.1  # in half precision
# Relative error up to which no rule is wrong; above it, double precision decides.
SURE, EVEN_IN_HALF = {torch.float64: EXACT, torch.float32: 1e-4}, 1e-2
# A single step, so short that it hardly crosses a kink, with rounding well below the above.
SHORT, SHORTEST = 1e-7, 1e-8
# A block is wrong if it is off by more than SEEN of the whole product and FAR of itself.
SEEN, FAR = {torch.float64: 3e-8, torch.float32: 3e-5}, 1e-2
SMALL = 1e-3  # times the order of a product: a smaller one is rounding


@dataclass(frozen=True)
class Proof:
    """What is known of the products of an operator.

    Attributes:
        differentiation: The way that the operator differentiates.
        error: Relative error of its product with a probe, measured against differences of
            first derivatives; for differences themselves, their own estimate.
        doubt: Why it is not proven; ``None`` if it is.
        is_near_by: Whether it is proven at nearby parameters, as there is a kink at these.
    """

    differentiation: Way
    error: float | None = None
    doubt: str | None = None
    is_near_by: bool = False

    def __str__(self) -> str:
        """``proven to 3e-10``, or ``not proven: why``."""
        if self.doubt is not None:
            return f"not proven: {self.doubt}"
        return f"proven{' near by' * self.is_near_by} to {self.error:.0e}"


UNCHECKED = "built with check_deterministic=False"
STOPPED = "the gradient is not that of the loss"


@dataclass(frozen=True)
class Subject:
    """What is to be proven: the matrix of one batch.

    Attributes:
        at: The parameters.
        multiply: ``(way, columns) ->`` the product in this way, ``[K, *m_i]``.
        check: ``(way, v, A v)``; raises if the transpose belongs to another matrix.
        check_symmetry: ``(way)``; raises if products with two columns do not belong to one
            symmetric matrix: a check that needs no differences.
        risk: A scalar function of the parameters, whose derivatives make up the matrix.
        kinds: The kinds of these derivatives.
        doubled: The same in double precision.
        near_by: The same at parameters one percent away.
    """

    at: Parameters
    multiply: Callable[[Differentiation, Blocks], Blocks]
    check: Callable[[Differentiation, Blocks, Blocks], None]
    check_symmetry: Callable[[Differentiation], None]
    risk: Differentiable
    kinds: tuple[Kind, ...]
    doubled: Callable[[], Subject]
    near_by: Callable[[], Subject]

    @property
    def dtype(self) -> torch.dtype:
        """The least precise type of a parameter."""
        dtypes = {p.dtype for p in self.at.tensors}
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def slope(self, at: Parameters) -> Blocks:
        """The gradient of the risk: a first derivative."""
        with torch.enable_grad(), at.leaves() as params:
            return gradient(only_tensor(self.risk(params)[0]), params, create_graph=False)

    def value(self, at: Parameters) -> Blocks:
        """The risk."""
        with torch.no_grad():
            return [only_tensor(self.risk([constant(p) for p in at.tensors])[0])]


def probes(at: Parameters, K: int = 1) -> Blocks:
    """Vectors to prove with, ``[K, *n_i]``."""
    return [
        v.to(at.dtype) for v in probe([p.detach().expand(K, *p.shape) for p in at.tensors])
    ]


def few(batch: tuple[Any, Any], risk: Callable[[Any, Any], object]) -> tuple[Any, Any]:
    """A few data of a batch, or the whole batch if they cannot be separated.

    Args:
        batch: The batch.
        risk: Function that must accept the few; if it raises, the batch is returned.
    """
    sizes = {t.shape[0] if t.ndim else 0 for t in nested.tensors(batch)}
    if len(sizes) != 1:
        return batch
    n = sizes.pop()
    some = max(2, min(FEW, n // 4))
    if n <= some:
        return batch
    rows = torch.linspace(0, n - 1, some).long().tolist()  # data may be sorted
    X, y = (nested.map_tensors(lambda t: t[rows], part) for part in batch)
    try:
        risk(X, y)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return batch
    return X, y


@dataclass(frozen=True)
class Truth:
    """The product with a probe, by differences.

    Attributes:
        subject: The matrix.
        product: Its product.
        error: Estimated relative error of the product.
        order: Order of magnitude of the product.
    """

    subject: Subject
    product: Blocks
    error: float
    order: float

    @property
    def margin(self) -> float:
        """Relative difference from a right product that its own error may cause."""
        return 10 * self.error

    def distance(self, product: Blocks) -> float:
        """Relative difference of another product from this one."""
        off = norm([a.to(b) - b for a, b in zip(product, self.product, strict=True)])
        scale = max(norm(self.product), SMALL * self.order)
        return off / scale if scale else (math.inf if off else 0.0)

    def worst(self, product: Blocks) -> float:
        """Relative difference of the whole product, or of a block if that is far off.

        A block may be small compared with the others, and still far above rounding.
        """
        pairs = zip(product, self.product, strict=True)
        off = norms([a.to(b) - b for a, b in pairs])
        length = norms(self.product)
        scale = max(float(length.norm()), SMALL * self.order)
        if not scale:
            return math.inf if bool(off.any()) else 0.0
        seen = max(SEEN.get(b.dtype, 1.0) for b in product)
        noise = length.norm() * max(seen, 10 * self.error)
        far = (off > noise) & (off > FAR * length)
        worst = torch.where(far, off / length, 0).max()  # infinite for a block of zeros
        return max(float(off.norm()) / scale, float(worst))


def prove(
    ways: tuple[Differentiation, ...], subject: Subject, v: Blocks
) -> tuple[tuple[Differentiation, ...], Proof]:
    """Take the first way whose products are right.

    Args:
        ways: What to try, in this order.
        subject: The matrix.
        v: A probe, ``[1, *n_i]``.

    Returns:
        The ways from the first that is right, and its proof.

    Raises:
        WrongDerivativeError: If each way gives wrong products, or none.
    """

    @functools.cache
    def known() -> Truth | str:
        return truth(subject, v)

    @functools.cache
    def single() -> Truth | None:
        return _single(subject, v)

    def attempt(way: Differentiation) -> Proof:
        called = CALLED[way.name]
        if isinstance(way, Differences):
            found = known()
            if isinstance(found, str):
                raise InaccurateError(found)
            way.error = max(way.error, found.error)
            doubt = None if is_gradient(found.subject) else STOPPED
            return Proof(called, found.error, doubt)
        product = _product(way, subject, v)
        rough = single()
        if rough is not None:
            off = rough.worst(product)
            if off <= SURE.get(subject.dtype, EVEN_IN_HALF):
                return Proof(called, off)
        found = known()
        if isinstance(found, str):
            return _near_by(way, called, subject, v, found)
        off = found.worst(product)
        if off <= SURE.get(subject.dtype, EVEN_IN_HALF) + found.margin:
            return Proof(called, off)
        return _judged(way, called, found, v, off)

    def say(way: Differentiation, error: Exception) -> str:
        found, where = known(), ""
        if isinstance(error, WrongDerivativeError) and isinstance(found, Truth):
            s = found.subject
            with suppress(RuntimeError, TypeError, ValueError, NotImplementedError):
                where = culprit(way, s.risk, s.at, s.kinds)
        return first_line(error) + (f", at fault is {where}" if where else "")

    try:
        return first_that_works(ways, attempt, say)
    except WrongDerivativeError as error:
        way = ways[0]
        raise WrongDerivativeError(
            f"{way.name} ({DOES[way.name]}) does not differentiate this model rightly: "
            f"{say(way, error)}. {REMEDIES}"
        ) from None


REMEDIES = (
    "Pass differentiation='differences', which needs first derivatives only; or compute "
    "what is at fault from other functions of torch; or, of a custom function, mend the "
    "derivative (its backward must be computed by torch, from saved tensors)."
)


def _product(way: Differentiation, subject: Subject, v: Blocks) -> Blocks:
    """The product of one column, which must be the same with ``vmap``.

    Raises:
        WrongDerivativeError: If it is not, or something is not finite.
    """
    product = subject.multiply(way, v)
    wide = vectorised(way)
    for blocks in (product, [] if wide is None else subject.multiply(wide, v)):
        if not all(bool(b.isfinite().all()) for b in blocks):
            raise WrongDerivativeError("its product with a probe is not finite")
        if blocks:
            check_columns(product, blocks, ROUNDED.get(subject.dtype, ROUGH))
    subject.check(way, v, product)
    return product


def _near_by(
    way: Differentiation, called: Way, subject: Subject, v: Blocks, doubt: str
) -> Proof:
    """The proof at nearby parameters, where differences do not converge: at a kink.

    At the kink, derivatives are a convention; nearby, the same code can be checked.

    Raises:
        WrongDerivativeError: If the product is wrong nearby.
    """
    right: Truth | str = doubt
    with suppress(*NO_COPY):
        right = truth(subject.doubled().near_by(), v)
    if isinstance(right, str) or not is_gradient(right.subject):
        subject.check_symmetry(way)
        return Proof(called, doubt=doubt)
    off = right.worst(right.subject.multiply(way, v))
    if off <= EXACT + right.margin:
        return Proof(called, off, is_near_by=True)
    raise WrongDerivativeError(_OFF.format(off))


_OFF = "a product is off by {:.1g} relative to differences of first derivatives"


def _judged(
    way: Differentiation, called: Way, right: Truth, v: Blocks, off: float
) -> Proof:
    """The cause of a difference: rounding, a stopped gradient, or a wrong derivative.

    Raises:
        WrongDerivativeError: If it is wrong.
    """
    exact = off
    if right.subject.dtype is torch.float64:
        exact = right.worst(right.subject.multiply(way, v))
        if exact <= EXACT + right.margin:
            doubt = None if off <= ROUGH else f"rounding makes {off:.0e} of a product"
            return Proof(called, off, doubt)
    if not is_gradient(right.subject):
        return Proof(called, doubt=STOPPED)
    raise WrongDerivativeError(_OFF.format(exact))


def _single(subject: Subject, v: Blocks) -> Truth | None:
    """The product by a single difference, if a copy can be made."""
    try:
        s = subject.doubled()
        step = SHORT if subject.dtype == torch.float64 else SHORTEST
        product = s.multiply(Differences(step), v)
    except NO_COPY:
        return None  # truth() gives the reason
    return Truth(s, product, error=0.0, order=0.0)


def truth(subject: Subject, v: Blocks) -> Truth | str:
    """The product by differences, or why there is none."""
    reason = ""
    for precision in ("double", "own"):
        try:
            s = subject.doubled() if precision == "double" else subject
            differences = Differences()
            product = s.multiply(differences, v)
            order = norm(s.slope(s.at)) * norm(v) / (1 + norm(s.at.tensors))
            return Truth(s, product, differences.error, order)
        except InaccurateError as error:
            return f"{error} ({reason})" if reason else str(error)
        except MemoryError as error:
            reason = reason or str(error)
        except NO_COPY as error:
            reason = reason or f"no copy in double precision ({first_line(error)})"
        if all(p.dtype == torch.float64 for p in subject.at.tensors):
            break
    return reason


def is_gradient(subject: Subject) -> bool:
    """Whether the gradient belongs to the risk; a model may stop gradients.

    If it does, it is the slope of the risk, and its derivative is symmetric.
    """
    g = subject.slope(subject.at)
    length = norm(g)
    if not length:
        return True
    # along the gradient, and along a random direction, for parts that it may leave out
    (u,) = probe([torch.cat([b.flatten() for b in g])])
    parts = u.split([b.numel() for b in g])
    along = [
        b[None] / length + w.view_as(b)[None] / u.norm()
        for b, w in zip(g, parts, strict=True)
    ]
    differences = Differences()
    try:
        (found,) = differences.derivative(subject.value, subject.at, along)
        expected = sum(float((b * w).sum()) for b, w in zip(g, along, strict=True))
        margin = 1e-6 if subject.dtype == torch.float64 else 1e-2
        if abs(float(found) - expected) > (margin + 10 * differences.error) * length:
            return False
        v = [b[None].to(p) for b, p in zip(probe(g), subject.at.tensors, strict=True)]
        subject.check(differences, v, subject.multiply(differences, v))
        subject.check_symmetry(differences)
    except InaccurateError:
        return True
    except WrongDerivativeError:
        return False
    return True
