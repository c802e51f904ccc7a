"""What an optimizer divides gradients by, and up to which sharpness it is stable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop.operators import DiagonalLinearOperator, LinearOperator
from curvop.reporting.target import Target, TargetError

State = dict[str, Any]  # of one parameter in an optimizer
Group = dict[str, Any]


@dataclass(frozen=True)
class Preconditioner:
    """``P`` of the generalised problem ``A v = λ P v``.

    Attributes:
        diagonal: The entries, flat, ``[N]``; ``None`` for the identity or an operator.
        operator: What the user gave as an operator, or ``None``.
        label: Where it comes from.
        formula: What the entries are.
        threshold: Sharpness beyond which full-batch training with this learning rate is
            unstable on a quadratic, or ``None`` where it is not known.
        limit: Its formula.
        remarks: What is left out.
    """

    diagonal: Tensor | None
    operator: LinearOperator | None
    label: str
    formula: str
    threshold: float | None = None
    limit: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether gradients are not divided by anything."""
        return self.diagonal is None and self.operator is None

    def words(self) -> dict[str, Any]:
        """What is told of it."""
        told = ("label", "formula", "threshold", "limit", "remarks", "is_identity")
        return {name: getattr(self, name) for name in told}

    def mark(self) -> Tensor | None:
        """What tells it from others."""
        if self.operator is None:
            return self.diagonal
        ones = torch.ones(self.operator.shape[1], dtype=self.operator.dtype)
        product: Tensor = self.operator @ ones.to(self.operator.device)
        return product

    def for_matrix(self, A: LinearOperator) -> LinearOperator | None:
        """The operator in the type and the blocks of ``A``; ``None`` for the identity."""
        if self.diagonal is None:
            return self.operator
        d = self.diagonal.to(A.device, A.dtype)
        parts = d.split([shape.numel() for shape in A.domain])
        blocks = [p.reshape(shape) for p, shape in zip(parts, A.domain, strict=True)]
        return DiagonalLinearOperator(blocks)


def preconditioner_of(target: Target) -> Preconditioner | None:
    """That of the target's optimizer, the one that was given, or ``None``.

    Raises:
        TargetError: If it does not fit the parameters, or is not known.
    """
    params, tensors = target.params, target.tensors
    if target.optimizer is not None:
        return _of_optimizer(target.optimizer, tensors)
    given = target.preconditioner
    if given is None or isinstance(given, LinearOperator):
        if given is None:
            return None
        return Preconditioner(None, given, type(given).__name__, "given as an operator")
    parts: list[Any]
    if isinstance(given, Mapping) and isinstance(params, dict):
        missing = [name for name in params if name not in given]
        if missing:
            raise TargetError(f"The preconditioner has no entries for {missing[:3]}.")
        parts = [given[name] for name in params]
    else:
        parts = list(given) if isinstance(given, list | tuple) else [given]
    if not all(isinstance(part, Tensor) for part in parts):
        raise TargetError(
            "Expected a preconditioner as a tensor [N], tensors in the shapes of the "
            f"parameters (a dict if those are one), or an operator, got "
            f"{type(given).__name__}."
        )
    diagonal = torch.cat([part.detach().reshape(-1) for part in parts])
    N = sum(p.numel() for p in tensors)
    if diagonal.shape != (N,) or not bool((diagonal > 0).all()):
        raise TargetError(
            f"Expected {N} positive entries of a diagonal preconditioner, got "
            f"{diagonal.numel()}, the least of which is {float(diagonal.min()):.3g}."
        )
    return Preconditioner(diagonal, None, "the preconditioner given", "its diagonal")


def _of_optimizer(optimizer: Any, params: list[Tensor]) -> Preconditioner:
    name = type(optimizer).__name__
    rule = RULES.get(name)
    if rule is None:
        raise TargetError(
            f"The preconditioner of {name} is not known, only those of "
            f"{', '.join(sorted(RULES))}. Give the diagonal that it divides gradients by "
            "as preconditioner instead."
        )
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    if any(id(p) not in group_of for p in params):
        raise TargetError(
            f"The {name} optimizer does not hold all of the parameters. Build it from the "
            "same tensors: optimizer of the model that is returned?"
        )
    groups = [group_of[id(p)] for p in params]
    states = [optimizer.state.get(p, {}) for p in params]
    if rule.entries is not None and not all(states):
        raise TargetError(
            f"The {name} optimizer has no state for some of the parameters. Take a step "
            "first, or load the state of the one that trained the model."
        )
    rates = {float(g["lr"]) for g in groups}
    remarks = []
    if any(g.get("weight_decay", 0) for g in groups):
        remarks.append("The optimizer's weight decay is not part of the matrix.")
    limits = {rule.limit(g) for g in groups}
    threshold, formula = None, ""
    if len(rates) == 1 and len(limits) == 1 and (rate := rates.pop()) > 0:
        limit, formula = limits.pop()
        threshold = limit / rate
    else:
        remarks.append(
            "No threshold: the learning rate is zero, or differs between parameters."
        )
    diagonal = None
    if rule.entries is not None:
        parts = [
            rule.entries(state, group).detach().reshape(-1)
            for state, group in zip(states, groups, strict=True)
        ]
        diagonal = torch.cat(parts)
        if not bool((diagonal > 0).all()):
            raise TargetError(
                f"The {name} optimizer divides by zero for some of the parameters: their "
                "gradients have been zero, and eps is. Leave them out, or give eps."
            )
    return Preconditioner(
        diagonal, None, name, rule.formula, threshold, formula, tuple(remarks)
    )


# ------------------------------------------------------ the rules of torch's optimizers


@dataclass(frozen=True)
class Rule:
    """How an optimizer divides gradients.

    Attributes:
        entries: From the state of a parameter to the diagonal; ``None`` for ones.
        formula: What they are.
        limit: Learning rate times sharpness at which a quadratic becomes unstable, and
            the formula of the sharpness.
    """

    entries: Callable[[State, Group], Tensor] | None
    formula: str
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
    """Momentum that averages: 38 for 0.9 (Cohen et al., 2022, arXiv:2207.14484)."""
    beta = float(group["betas"][0])
    return 2 * (1 + beta) / (1 - beta), "2 (1 + β₁) / ((1 − β₁) η)"


def _summed(group: Group) -> tuple[float, str]:
    """Momentum that sums, or none."""
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
