"""Columns in the space of predictions whose outer products make a curvature matrix.

``Σ_r s_{n,r} s_{n,r}ᵀ`` over the columns of each datum ``n`` is the Hessian of its loss in
the prediction (GGN), a sampled estimate of it (Monte-Carlo Fisher), or the outer products
of the gradients of its loss (empirical Fisher). With the transposed Jacobian of the
model in front they are the columns of ``V`` in ``A = V Vᵀ``. All are computed by autodiff
of the user's own loss; where the form of its Hessian is known, no matrix per datum is
allocated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor

from curvop.curvature.loss_hessian import (
    ELEMENTWISE,
    SOFTMAX,
    diagonal_of_terms,
    softmax_scale,
)
from curvop.derivatives import Aux, DoubleBackward, Outputs, RiskDifferentiation
from curvop.operators import Blocks
from curvop.risk import (
    Draw,
    Loss,
    LossFunction,
    Parameters,
    Sampler,
    Weighted,
    by_class,
    by_class_back,
    check_predictive,
    direction,
    fingerprints,
    nested,
    registered,
    uniform,
)

Kind = Literal["type-2", "mc", "empirical"]
# What has its own gradient in the empirical Fisher.
Per = Literal["term", "example", "output"]

# Default seed of samples.
SEED = 2147483647


class OutputFactor(ABC):
    """``S`` of one batch: ``Σ_r s_{n,r} s_{n,r}ᵀ`` for each datum, of the *summed* loss.

    Attributes:
        num_columns: Columns of each datum.
        num_together: Columns if all loss terms of a datum share them. The outer products
            then also have entries between terms, which are right only if they cancel or
            the model keeps the terms apart.
    """

    num_columns: int
    num_together: int

    def columns(self, which: slice, together: bool = False) -> Tensor:
        """Some columns of every datum at once, ``[k, *prediction.shape]``.

        Raises:
            ValueError: If the prediction is not one tensor.
        """
        blocks = self.blocks(which, together)
        if len(blocks) != 1:
            raise ValueError(
                f"Expected a prediction that is one tensor, got {len(blocks)} of them."
            )
        return blocks[0]

    def blocks(self, which: slice, together: bool = False) -> Blocks:
        """Some columns of every datum at once, ``[k, *m_i]`` for each output."""
        count = self.num_together if together else self.num_columns
        with torch.no_grad():
            return self._blocks(range(count)[which], together)

    @abstractmethod
    def _blocks(self, which: range, together: bool) -> Blocks:
        """The columns with these positions."""


def output_factor(
    loss: Loss,
    prediction: Any,
    y: Any,
    *,
    num_data: int,
    kind: Kind = "type-2",
    mc_samples: int = 1,
    seed: int = SEED,
    X: Any = None,
    per: Per = "output",
    way: RiskDifferentiation | None = None,
    fewest: bool = False,
) -> OutputFactor:
    """The factor of one batch.

    Args:
        loss: The loss.
        prediction: That of the model, data leading.
        y: Targets.
        num_data: Number of data in the batch; each may have several rows of the prediction.
        kind: ``"type-2"``: of the Hessian of the loss; ``"mc"``: samples from the
            predictive distribution; ``"empirical"``: gradients of the loss.
        mc_samples: Samples for each datum.
        seed: Another seed gives other samples.
        X: Inputs, since samples are a function of the content of a datum.
        per: What has its own gradient, see :class:`EFLinearOperator`.
        way: How to differentiate the loss twice; by default double backward.
        fewest: For cross-entropy one column less for each target: as many as the rank.

    Raises:
        ValueError: If the prediction has no batch axis, the loss is not convex, or nothing
            is known of its predictive distribution.
        TypeError: If the loss has no unreduced terms.
    """
    outputs = tuple(o.detach() for o in nested.differentiable(prediction))
    prediction = nested.refill(prediction, outputs)
    if any(o.ndim == 0 or o.shape[0] % max(num_data, 1) for o in outputs):
        raise ValueError(
            f"Expected a prediction with the {num_data} data of the batch as leading axis, "
            f"got shape {tuple(outputs[0].shape)}. Keep the batch axis in the model, or "
            "pass batch_size_fn, a function of X that returns the number of data."
        )
    way = way or DoubleBackward()
    if kind == "mc":
        at = fingerprints((X, y), num_data)
        return _Samples(loss, prediction, y, at, mc_samples, seed, way)
    if kind == "empirical":
        return _Gradients(loss, prediction, y, num_data, per)
    if isinstance(prediction, Tensor) and loss.kind in SOFTMAX:
        return _Softmax(loss, prediction, y, num_data, way, fewest)
    if isinstance(prediction, Tensor) and loss.kind in ELEMENTWISE:
        return _Elementwise(loss, prediction, y, num_data, way)
    return _Eigenvectors(loss, prediction, y, num_data)


def outer_products(S: Blocks, U: Blocks, N: int) -> Blocks:
    """``Σ_r s_{n,r} s_{n,r}ᵀ u_n`` for each datum ``n``.

    Args:
        S: The columns, ``[R, *m_i]``.
        U: The columns to multiply, ``[K, *m_i]``.
        N: Number of data on the leading axis of ``m_i``.
    """
    R, K = S[0].shape[0], U[0].shape[0]
    flat = torch.cat([s.reshape(R, N, -1) for s in S], 2).movedim(0, 1)  # [N, R, m]
    u = torch.cat([u.reshape(K, N, -1) for u in U], 2).movedim(0, 1)  # [N, K, m]
    out = ((u @ flat.mT) @ flat).movedim(1, 0)  # [K, N, m]
    parts = out.split([v[0].numel() // max(N, 1) for v in U], 2)
    return [p.reshape(v.shape) for p, v in zip(parts, U, strict=True)]


@final
class _Softmax(OutputFactor):
    """Cross-entropy: ``s_c = √(a p_c) (e_c - m)`` for each target and class ``c``.

    Either with ``m = p``, or the fewest columns: then ``m = (1 - κ) p + κ e_C`` with
    ``κ = √p_C / (1 + √p_C)``, and the last one vanishes. It is the same factor, multiplied
    with the Householder reflection that takes ``√p`` to ``-e_C``, since ``S √p = 0``.
    """

    def __init__(
        self,
        loss: Loss,
        f: Tensor,
        y: Any,
        N: int,
        way: RiskDifferentiation,
        fewest: bool,
    ) -> None:
        with torch.no_grad():
            classes = by_class(f)
            C = classes.shape[-1]
            p = self._m = classes.softmax(-1).reshape(N, -1, C)
            a = _non_negative(softmax_scale(loss, f, y, way), loss)
            self._root = (a.reshape(N, -1, 1) * p).sqrt()
            if fewest:
                last = p[..., -1:].sqrt()
                self._m = p / (1 + last)
                self._m[..., -1:] += last / (1 + last)
        self._f, self._shape = f, classes.shape
        self.num_together = C - 1 if fewest else C
        self.num_columns = self._m.shape[1] * self.num_together

    def _blocks(self, which: range, together: bool) -> Blocks:
        N, T, C = self._m.shape
        r = torch.tensor(which, dtype=torch.long, device=self._m.device)
        c, k = r % max(self.num_together, 1), torch.arange(len(which), device=r.device)
        if together:
            out = -self._m.expand(len(which), N, T, C).clone()
            out[k, :, :, c] += 1
            out *= self._root.movedim(-1, 0)[c][..., None]
        else:
            t = r // max(self.num_together, 1)
            s = -self._m[:, t].movedim(1, 0).clone()  # [k, N, C]
            s[k, :, c] += 1
            s *= self._root[:, t, c].T[..., None]
            out = self._m.new_zeros(len(which), N, T, C)
            out[k, :, t] = s
        return [by_class_back(out.reshape(-1, *self._shape), self._f)]


@final
class _Elementwise(OutputFactor):
    """Element-wise losses: ``s_i = √h_i e_i``. Terms along the last axis are kept apart."""

    def __init__(
        self, loss: Loss, f: Tensor, y: Any, N: int, way: RiskDifferentiation
    ) -> None:
        with torch.no_grad():
            h = _non_negative(diagonal_of_terms(loss, f, y, way), loss)
        self._shape = f.shape
        self._root = h.sqrt().reshape(N, -1)
        self.num_columns = self._root.shape[1]
        self.num_together = f.shape[-1] if f.ndim > 1 else self.num_columns

    def _blocks(self, which: range, together: bool) -> Blocks:
        N, m = self._root.shape
        out = self._root.new_zeros(len(which), N, m)
        for k, r in enumerate(which):
            at = slice(r, None, self.num_together) if together else slice(r, r + 1)
            out[k, :, at] = self._root[:, at]
        return [out.reshape(-1, *self._shape)]


@final
class _Eigenvectors(OutputFactor):
    """Any other convex loss: ``s_i = √λ_i q_i``; takes ``m²`` numbers for each datum."""

    def __init__(self, loss: Loss, prediction: Any, y: Any, N: int) -> None:
        outputs = nested.differentiable(prediction)
        self._shapes = [o.shape for o in outputs]
        self._sizes = [o.numel() // max(N, 1) for o in outputs]
        m = sum(self._sizes)

        def total(outputs: Sequence[Tensor]) -> tuple[Outputs, Aux]:
            return (loss.total(nested.refill(prediction, outputs), y),), ()

        at = Parameters(tuple(outputs), None, lambda p, X: p, functional=True)
        eye = torch.eye(m, dtype=outputs[0].dtype, device=outputs[0].device)
        units = self._unflattened(eye[:, None].expand(m, N, m))
        rows, _ = DoubleBackward().hessian(total, at, units, None)
        H = torch.cat([r.reshape(m, N, -1) for r in rows], 2).movedim(1, 0)
        values, Q = torch.linalg.eigh((H + H.mT) / 2)
        values = _non_negative(values, loss)
        self._S = (Q * values.sqrt()[:, None]).movedim(2, 0)  # [R, N, m]
        self.num_columns = self.num_together = m

    def _unflattened(self, s: Tensor) -> Blocks:
        parts = s.split(self._sizes, 2)
        return [p.reshape(-1, *i) for p, i in zip(parts, self._shapes, strict=True)]

    def _blocks(self, which: range, together: bool) -> Blocks:
        return self._unflattened(self._S[which.start : which.stop : which.step])


@final
class _Samples(OutputFactor):
    """Gradients at targets drawn from the predictive distribution, over ``√samples``."""

    def __init__(
        self,
        loss: Loss,
        prediction: Any,
        y: Any,
        at: Tensor,
        samples: int,
        seed: int,
        way: RiskDifferentiation,
    ) -> None:
        check_predictive(loss)

        def draws(i: int) -> Callable[[torch.Size], Tensor]:
            def draw(shape: torch.Size) -> Tensor:
                each = torch.Size(shape).numel() // max(len(at), 1)
                return uniform(at, seed, i, each).reshape(shape)

            return draw

        with torch.no_grad():
            sample = _sampler(loss, prediction, y, way)
            drawn = [sample(draws(i)) for i in range(samples)]
        self._S = [torch.stack(s) / samples**0.5 for s in zip(*drawn, strict=True)]
        self.num_columns = self.num_together = samples

    def _blocks(self, which: range, together: bool) -> Blocks:
        return [S[which.start : which.stop : which.step] for S in self._S]


def _sampler(
    loss: Loss, prediction: Any, y: Any, way: RiskDifferentiation
) -> Callable[[Draw], Blocks]:
    """Draws ``s`` for every datum, with ``E s sᵀ = ∇²_f ℓ``, for each tensor predicted."""
    draw_targets = registered(loss)
    if draw_targets is not None:
        return partial(_at_targets, loss, prediction, y, draw_targets)
    if loss.kind in SOFTMAX:  # √a (e_ŷ - p)
        root = softmax_scale(loss, prediction, y, way).sqrt()[..., None]
        return lambda draw: [
            by_class_back(root * by_class(direction(loss, prediction, draw)), prediction)
        ]
    scale = diagonal_of_terms(loss, prediction, y, way).sqrt()
    return lambda draw: [scale * direction(loss, prediction, draw)]


def _at_targets(
    loss: Loss, prediction: Any, y: Any, draw_targets: Sampler, draw: Draw
) -> Blocks:
    """The gradient of the loss at targets that are drawn."""
    outputs = nested.differentiable(prediction)
    u = draw(outputs[0].shape).to(outputs[0].dtype)
    if isinstance(y, Weighted):
        targets: Any = Weighted(draw_targets(prediction, y.y, u), y.weight)
    else:
        targets = draw_targets(prediction, y, u)
    with torch.enable_grad():
        leaves = [o.detach().requires_grad_() for o in outputs]
        value = loss.total(nested.refill(prediction, leaves), targets)
        return list(torch.autograd.grad(value, leaves, materialize_grads=True))


@final
class _Gradients(OutputFactor):
    """Gradients of the loss; :class:`EFLinearOperator` says for what there is one each."""

    def __init__(self, loss: Loss, prediction: Any, y: Any, N: int, per: Per) -> None:
        terms_of = check_terms(loss)
        with torch.enable_grad():
            found = nested.differentiable(prediction)
            self._outputs = [o.detach().requires_grad_() for o in found]
            at = nested.refill(prediction, self._outputs)
            terms = grouped(terms_of(at, y), at, per, N)
            if terms.numel() % max(N, 1):
                raise ValueError(
                    f"Expected loss terms for each of the {N} data of the batch, got shape "
                    f"{tuple(terms.shape)}. Pass batch_size_fn, a function of X."
                )
            self._terms = terms.reshape(N, -1)
        self.num_columns = self._terms.shape[1]
        self.num_together = 1

    def _blocks(self, which: range, together: bool) -> Blocks:
        gradients = []
        for r in which:
            u = torch.ones_like(self._terms) if together else torch.zeros_like(self._terms)
            u[:, r] = 1
            g = torch.autograd.grad(
                self._terms,
                self._outputs,
                u,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            gradients.append(g)
        if not gradients:
            return [o.new_empty(0, *o.shape) for o in self._outputs]
        return [torch.stack(g) for g in zip(*gradients, strict=True)]


def grouped(terms: Tensor, prediction: Any, per: Per, num_data: int) -> Tensor:
    """Loss terms, summed over those that share a gradient.

    Args:
        terms: The unreduced terms.
        prediction: The prediction that they were computed from.
        per: See :class:`EFLinearOperator`.
        num_data: Number of data in the batch.

    Raises:
        ValueError: If the data is not the leading axis of the terms.
    """
    if per == "output":
        is_elementwise = isinstance(prediction, Tensor) and terms.shape == prediction.shape
        return terms.sum(-1) if is_elementwise and terms.ndim > 1 else terms
    if per == "example" and terms.ndim > 0:
        if terms.shape[0] != num_data:
            raise ValueError(
                f"Expected loss terms with the {num_data} examples of the batch as leading "
                f"axis, got shape {tuple(terms.shape)}. Keep the batch axis of the "
                "prediction (for cross-entropy [N, C, T]), or pass batch_size_fn."
            )
        return terms.flatten(1).sum(1) if terms.ndim > 1 else terms
    return terms


def check_terms(loss: Loss) -> LossFunction:
    """The function for unreduced terms.

    Raises:
        TypeError: If the loss has none.
    """
    if loss.terms is None:
        raise TypeError(
            "The empirical Fisher needs the unreduced terms of the loss, and this "
            "callable only gives a scalar. Pass a torch loss module, or a callable "
            "with a keyword reduction that understands 'none'."
        )
    return loss.terms


def _non_negative(values: Tensor, loss: Loss) -> Tensor:
    """The eigenvalues, with zero in place of those that rounding made negative.

    Raises:
        ValueError: If one is truly negative.
    """
    if values.numel() == 0:
        return values
    least, largest = float(values.min()), float(values.abs().max())
    if least < -1e3 * torch.finfo(values.dtype).eps * largest:
        raise ValueError(
            f"{loss.name} is not convex in the prediction here (its Hessian has an "
            f"eigenvalue of {least:.3g}), hence no factor S with S Sᵀ = ∇²ℓ. Multiply "
            "with the operator itself, which needs none."
        )
    return values.clamp_min(0)
