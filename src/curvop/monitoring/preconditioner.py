"""What gradients are divided by: the preconditioner of an optimizer, or given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop.monitoring.stability import RULES
from curvop.operators import DiagonalLinearOperator, LinearOperator


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
        """A description."""
        told = ("label", "formula", "threshold", "limit", "remarks", "is_identity")
        return {name: getattr(self, name) for name in told}

    def mark(self) -> Tensor | None:
        """An identifier, different for different preconditioners."""
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


def preconditioner_of(
    params: list[Tensor] | dict[str, Tensor], *, optimizer: Any = None, given: Any = None
) -> Preconditioner | None:
    """That of the optimizer, the one that was given, or ``None``.

    Args:
        params: The parameters of the matrix.
        optimizer: One that has taken steps.
        given: The diagonal ``[N]``, tensors in the shapes of the parameters (a dict if
            those are one), or an operator.

    Raises:
        ValueError: If it does not fit the parameters, or is not known.
    """
    tensors = list(params.values()) if isinstance(params, dict) else params
    if optimizer is not None:
        return _of_optimizer(optimizer, tensors)
    if given is None:
        return None
    if isinstance(given, LinearOperator):
        return Preconditioner(None, given, type(given).__name__, "given as an operator")
    parts: list[Any]
    if isinstance(given, Mapping) and isinstance(params, dict):
        missing = [name for name in params if name not in given]
        if missing:
            raise ValueError(f"The preconditioner has no entries for {missing[:3]}.")
        parts = [given[name] for name in params]
    else:
        parts = list(given) if isinstance(given, list | tuple) else [given]
    if not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(
            "Expected a preconditioner as a tensor [N], tensors in the shapes of the "
            f"parameters (a dict if those are one), or an operator, got "
            f"{type(given).__name__}."
        )
    diagonal = torch.cat([part.detach().reshape(-1) for part in parts])
    N = sum(p.numel() for p in tensors)
    if diagonal.shape != (N,) or not bool((diagonal > 0).all()):
        raise ValueError(
            f"Expected {N} positive entries of a diagonal preconditioner, got "
            f"{diagonal.numel()}, the least of which is {float(diagonal.min()):.3g}."
        )
    return Preconditioner(diagonal, None, "the preconditioner given", "its diagonal")


def _of_optimizer(optimizer: Any, params: list[Tensor]) -> Preconditioner:
    name = type(optimizer).__name__
    rule = RULES.get(name)
    if rule is None:
        raise ValueError(
            f"The preconditioner of {name} is not known, only those of "
            f"{', '.join(sorted(RULES))}. Give the diagonal that it divides gradients by "
            "as preconditioner instead."
        )
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    if any(id(p) not in group_of for p in params):
        raise ValueError(
            f"The {name} optimizer does not hold all of the parameters. Build it from the "
            "same tensors: optimizer of the model that is returned?"
        )
    groups = [group_of[id(p)] for p in params]
    states = [optimizer.state.get(p, {}) for p in params]
    if rule.divisor is not None and not all(states):
        raise ValueError(
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
    if rule.divisor is not None:
        parts = [
            rule.divisor(state, group).detach().reshape(-1)
            for state, group in zip(states, groups, strict=True)
        ]
        diagonal = torch.cat(parts)
        if not bool((diagonal > 0).all()):
            raise ValueError(
                f"The {name} optimizer divides by zero for some of the parameters: their "
                "gradients have been zero, and eps is. Leave them out, or give eps."
            )
    return Preconditioner(
        diagonal, None, name, rule.formula, threshold, formula, tuple(remarks)
    )
