"""The predictive distribution of a loss, and directions drawn from it.

A loss ``ℓ(f, y) = -log p(y | f)`` defines the distribution of targets, hence the directions
of its gradients at drawn targets; their lengths come from the Hessian of the loss, with
every option.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop.risk.losses import Loss, kind_of

Sampler = Callable[[Any, Any, Tensor], Any]  # (prediction, y, uniform) -> targets
Draw = Callable[[torch.Size], Tensor]  # shape, data leading -> uniform numbers
BuiltIn = Callable[[Loss, Tensor, Draw], Tensor]

_registered: dict[Any, Sampler] = {}


def register_predictive(loss: Any, sample: Sampler) -> None:
    r"""Register the predictive distribution of your own loss, for sampled Fishers.

    .. math:: F = \frac{1}{Z} \sum_n J_n^⊤ \, \mathbb{E}\left[ s_n s_n^⊤ \right] J_n,
        \qquad s_n = ∇_f ℓ(f_n, \hat y_n), \quad \hat y_n ∼ p(· | f_n)

    Args:
        loss: The class of a loss module, or a function ``(prediction, y) -> scalar``.
        sample: ``(prediction, y, uniform) -> targets``, which turns ``uniform``, numbers
            in ``(0, 1)`` of the prediction's shape, into targets drawn given the
            prediction, in the form in which the loss takes ``y`` (by an inverse
            distribution function, say). Anything else in ``y`` should be passed on.

    Raises:
        TypeError: If either is not callable.

    Example: a Laplace distribution of unit scale, whose negative log-likelihood is the
    absolute error.

    >>> from torch.distributions import Laplace
    >>> def absolute(prediction, y):
    ...     return (prediction - y).abs().sum()
    >>> register_predictive(absolute, lambda f, y, u: Laplace(f, 1.0).icdf(u))
    """
    for name, argument in (("loss", loss), ("sample", sample)):
        if not callable(argument):
            raise TypeError(
                f"Expected {name} as a callable, got {type(argument).__name__}."
            )
    is_class = isinstance(loss, type)
    _registered[loss if is_class else kind_of(loss)] = sample


def has_predictive(loss: Loss) -> bool:
    """Whether the predictive distribution of the loss is known."""
    return loss.kind in _registered or loss.kind in _BUILT_IN


def check_predictive(loss: Loss) -> None:
    """Refuse losses whose predictive distribution is not known.

    Raises:
        ValueError: If it is not.
    """
    if not has_predictive(loss):
        raise ValueError(
            f"The predictive distribution of {loss.name} is not known. Known are "
            "CrossEntropyLoss, MSELoss, BCEWithLogitsLoss and PoissonNLLLoss; call "
            "curvop.register_predictive(loss, sample) for yours, or use the exact "
            "matrix (mc_samples=0, fisher_type='type-2')."
        )


def registered(loss: Loss) -> Sampler | None:
    """The registered function that draws targets of the user's own loss."""
    return _registered.get(loss.kind)


def direction(loss: Loss, f: Tensor, draw: Draw) -> Tensor:
    """The direction of the gradient at a sample, for each datum, in the shape of ``f``.

    For classes ``e_ŷ - p`` with a class ``ŷ`` drawn from ``p = softmax(f)``; for other
    targets numbers of mean zero and variance one.
    """
    return _BUILT_IN[loss.kind](loss, f, draw)


def by_class(f: Tensor) -> Tensor:
    """``[C]``, ``[N, C]`` or ``[N, C, *d]`` with the classes as the last axis."""
    return f.movedim(1 if f.ndim > 1 else 0, -1)


def by_class_back(t: Tensor, f: Tensor) -> Tensor:
    """The inverse, for ``t`` with any number of axes before those of ``f``."""
    return t.movedim(-1, t.ndim - f.ndim + (1 if f.ndim > 1 else 0))


def _categorical(loss: Loss, f: Tensor, draw: Draw) -> Tensor:
    p = by_class(f).softmax(-1)
    u = draw(p.shape[:-1])
    below = p.double().cumsum(-1) < u[..., None]  # classes below the sampled one
    last = torch.full_like(u, p.shape[-1] - 1, dtype=torch.long)
    drawn = torch.minimum(below.sum(-1), last)
    e = (torch.arange(p.shape[-1], device=p.device) == drawn[..., None]).to(p.dtype)
    return by_class_back(e - p, f)


def _standardised(standard: Callable[[Loss, Tensor, Tensor], Tensor]) -> BuiltIn:
    def drawn(loss: Loss, f: Tensor, draw: Draw) -> Tensor:
        return standard(loss, f.double(), draw(f.shape)).to(f.dtype)

    return drawn


def _normal(loss: Loss, f: Tensor, u: Tensor) -> Tensor:
    z: Tensor = torch.special.ndtri(u)
    return z


def _bernoulli(loss: Loss, f: Tensor, u: Tensor) -> Tensor:
    p = f.sigmoid()
    spread = (p * (1 - p)).clamp_min(torch.finfo(p.dtype).tiny)
    return ((u < p).to(p.dtype) - p) / spread.sqrt()


def _poisson(loss: Loss, f: Tensor, u: Tensor) -> Tensor:
    rate = f.exp() if loss.option("log_input", True) else f
    rate = rate.clamp_min(torch.finfo(f.dtype).tiny)
    # the smallest count k with u <= P(ŷ <= k), between low and high
    low = torch.full_like(rate, -1.0)
    high = (rate + 40 * rate.sqrt() + 40).ceil()
    for _ in range(40):
        k = ((low + high) / 2).floor()
        is_enough = torch.special.gammaincc(k.clamp_min(0) + 1, rate) >= u
        is_enough = is_enough & (k >= 0)
        low, high = torch.where(is_enough, low, k), torch.where(is_enough, k, high)
    return (high - rate) / rate.sqrt()


_BUILT_IN: dict[Any, BuiltIn] = {
    nn.CrossEntropyLoss: _categorical,
    F.cross_entropy: _categorical,
    nn.MSELoss: _standardised(_normal),
    F.mse_loss: _standardised(_normal),
    nn.BCEWithLogitsLoss: _standardised(_bernoulli),
    F.binary_cross_entropy_with_logits: _standardised(_bernoulli),
    nn.PoissonNLLLoss: _standardised(_poisson),
    F.poisson_nll_loss: _standardised(_poisson),
}
