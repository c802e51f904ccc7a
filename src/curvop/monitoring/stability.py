r"""The edge of stability: what optimizers divide gradients by, and how far they are stable.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

State = dict[str, Any]  # of one parameter in an optimizer
Group = dict[str, Any]  # of parameters with the same settings


@dataclass(frozen=True)
class Rule:
    """How an optimizer divides gradients, and when it becomes unstable."""

    # from the state of a parameter to the diagonal; None for ones
    divisor: Callable[[State, Group], Tensor] | None
    formula: str  # what the entries are
    # learning rate times sharpness at which a quadratic becomes unstable, and the
    # formula of the sharpness
    limit: Callable[[Group], tuple[float, str]]


def _adam(state: State, group: Group) -> Tensor:
    beta = float(group["betas"][1])
    key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    v_hat: Tensor = state[key] / (1 - beta ** float(state["step"]))
    return v_hat.sqrt() + float(group["eps"])


def _rmsprop(state: State, group: Group) -> Tensor:
    v: Tensor = state["square_avg"]
    if group["centered"]:
        v = v - state["grad_avg"].square()
    return v.clamp(min=0).sqrt() + float(group["eps"])


def _adagrad(state: State, group: Group) -> Tensor:
    total: Tensor = state["sum"]
    return total.sqrt() + float(group["eps"])


def _averaged(group: Group) -> tuple[float, str]:
    """Momentum that averages gradients: 38 for 0.9."""
    beta = float(group["betas"][0])
    return 2 * (1 + beta) / (1 - beta), "2 (1 + β₁) / ((1 − β₁) η)"


def _summed(group: Group) -> tuple[float, str]:
    """Momentum that sums them, or none."""
    beta = float(group.get("momentum", 0.0))
    if not beta:
        return 2.0, "2 / η"
    if group.get("nesterov"):
        return 2 * (1 + beta) / (1 + 2 * beta), "2 (1 + β) / ((1 + 2β) η)"
    if damp := float(group.get("dampening", 0.0)):
        return 2 * (1 + beta) / (1 - damp), "2 (1 + β) / ((1 − dampening) η)"
    return 2 * (1 + beta), "2 (1 + β) / η"


RULES = {
    "Adam": Rule(_adam, "diag(√v̂ + ε)", _averaged),
    "AdamW": Rule(_adam, "diag(√v̂ + ε)", _averaged),
    "RMSprop": Rule(_rmsprop, "diag(√v + ε)", _summed),
    "Adagrad": Rule(_adagrad, "diag(√Σg² + ε)", _summed),
    "SGD": Rule(None, "the identity", _summed),
}


# ------------------------------------------------------------ while a model is trained


def learning_rate(optimizer: Optimizer | None) -> float | None:
    """The learning rate, if all parameters have the same."""
    groups = [] if optimizer is None else optimizer.param_groups
    rates = {float(group["lr"]) for group in groups}
    return rates.pop() if len(rates) == 1 else None


def threshold(optimizer: Optimizer | None) -> float | None:
    """The largest stable sharpness, if it is known; weight decay adds to the Hessian."""
    if type(optimizer) is not SGD:
        return None
    names = ("momentum", "nesterov", "weight_decay", "dampening", "maximize")
    eta, groups = learning_rate(optimizer), optimizer.param_groups
    is_alike = len({tuple(group[name] for name in names) for group in groups}) == 1
    group = groups[0]
    if not eta or not is_alike or group["dampening"] or group["maximize"]:
        return None
    return _summed(group)[0] / eta - float(group["weight_decay"])


def preconditioned_threshold(optimizer: Optimizer | None) -> float | None:
    """The largest stable eigenvalue of ``P⁻¹ H``, if it is known."""
    if not isinstance(optimizer, Adam | AdamW):
        return None
    eta, groups = learning_rate(optimizer), optimizer.param_groups
    betas = {float(group["betas"][0]) for group in groups}
    if not eta or len(betas) > 1 or any(group["weight_decay"] for group in groups):
        return None
    return _averaged(groups[0])[0] / eta


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


def _of_adam(state: State, group: Group) -> Tensor:
    beta = float(group["betas"][0])
    P: Tensor = (1 - beta ** float(state["step"])) * _adam(state, group)
    return P
