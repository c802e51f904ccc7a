r"""What an optimizer makes of curvature: its preconditioner, its stability threshold.

On a quadratic of curvature ``λ`` an optimizer diverges once ``λ``, or the eigenvalue of
``P⁻¹ H`` for a preconditioned one, is beyond a threshold:

- gradient descent with the learning rate ``η``: ``2/η``;
- with heavy-ball momentum ``β``: ``(2 + 2β)/η``; with Nesterov's
  ``(2 + 2β)/((1 + 2β) η)`` (Cohen, Kaur, Li, Kolter, Talwalkar, "Gradient descent on neural
  networks typically occurs at the edge of stability", 2021);
- Adam: ``(2 + 2β₁)/((1 - β₁) η)`` with ``P = (1 - β₁ᵗ)(√v̂ + ε)`` (Cohen et al., "Adaptive
  gradient methods at the edge of stability", 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


def learning_rate(optimizer: Optimizer | None) -> float | None:
    """The learning rate, if all parameters have the same."""
    groups = [] if optimizer is None else optimizer.param_groups
    rates = {float(group["lr"]) for group in groups}
    return rates.pop() if len(rates) == 1 else None


def threshold(optimizer: Optimizer | None) -> float | None:
    """The largest stable sharpness, if it is known; weight decay adds to the Hessian."""
    eta = learning_rate(optimizer)
    if not eta or type(optimizer) is not SGD:
        return None
    settings = {
        tuple(group[name] for name in ("momentum", "nesterov", "weight_decay", "dampening"))
        for group in optimizer.param_groups
    }
    if len(settings) > 1 or any(group["maximize"] for group in optimizer.param_groups):
        return None
    ((beta, nesterov, decay, dampening),) = settings
    if dampening:
        return None
    limit: float = (2 + 2 * beta) / ((1 + 2 * beta if nesterov else 1) * eta)
    return limit - float(decay)


def preconditioned_threshold(optimizer: Optimizer | None) -> float | None:
    """The largest stable eigenvalue of ``P⁻¹ H``, if it is known."""
    eta = learning_rate(optimizer)
    if not eta or not isinstance(optimizer, Adam | AdamW):
        return None
    betas = {float(group["betas"][0]) for group in optimizer.param_groups}
    decays = any(group["weight_decay"] for group in optimizer.param_groups)
    if len(betas) > 1 or decays:
        return None
    beta = betas.pop()
    return (2 + 2 * beta) / ((1 - beta) * eta)


def check_preconditioned(optimizer: Any) -> None:
    """Refuse an optimizer whose preconditioner is not known.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(optimizer, Adam | AdamW):
        raise TypeError(
            "preconditioned=True needs optimizer= as torch's Adam or AdamW, got "
            f"{type(optimizer).__name__}."
        )


def preconditioner(optimizer: Optimizer, params: Sequence[Tensor]) -> Tensor | None:
    """The diagonal ``P`` of Adam, ``[N]``; ``None`` before its first step."""
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if any(id(p) not in of or not optimizer.state.get(p) for p in params):
        return None
    return torch.cat([_of_adam(optimizer.state[p], of[id(p)]).reshape(-1) for p in params])


def _of_adam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    t, (beta1, beta2) = float(state["step"]), group["betas"]
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    root: Tensor = (second / (1 - beta2**t)).sqrt()
    P: Tensor = (1 - beta1**t) * (root + group["eps"])
    return P
