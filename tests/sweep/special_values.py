"""Functions at zero, at a kink, and where an expression is 0 / 0."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Case, functions, points

ZERO_ROW = torch.tensor([[0.0], [1.0], [1.0]]).double()
TWO_ZERO_ROWS = torch.tensor([[0.0], [0.0], [1.0]]).double()
HOLES = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]).double()


def without_first(x: Tensor) -> Tensor:
    """Where the slope at zero is zero by convention."""
    return torch.cat([0 * x[:, :1], x[:, 1:]], 1)


def singular(x: Tensor) -> Tensor:
    """A matrix of zeros, and others."""
    return (x * ZERO_ROW).view(-1, 2, 2)


def rank_one(x: Tensor) -> Tensor:
    """``[N, 9]`` as matrices whose rows are multiples."""
    A = x.view(-1, 3, 3)
    return A[:, :, :1] * torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype) + 0 * A


def constant_rows() -> dict[str, object]:
    """Rows that are zero whatever the parameters are: padding, say."""
    return {
        "cdist of zero rows": lambda x: torch.cdist(x * TWO_ZERO_ROWS, x * TWO_ZERO_ROWS),
        "cosine_similarity of a zero row": lambda x: F.cosine_similarity(
            x * ZERO_ROW, x.sin()
        ),
        "cumprod with zeros": lambda x: (x * HOLES).cumprod(1),
        "det of zeros": lambda x: torch.linalg.det(singular(x)),
        "dist of equals": lambda x: torch.dist(x, x) + x.sin(),
        "F.lp_pool1d of zeros": lambda x: F.lp_pool1d((x * x + 0.1) * ZERO_ROW, 2.0, 2),
        "F.normalize of a zero row": lambda x: F.normalize(x * ZERO_ROW),
        "F.pairwise_distance of equals": lambda x: (
            F.pairwise_distance(x, x, eps=0.0) + x.T[0]
        ),
        "F.pdist of zero rows": lambda x: F.pdist(x * TWO_ZERO_ROWS),
        "linalg.norm of a zero row": lambda x: torch.linalg.norm(x * ZERO_ROW, dim=1),
        "norm 1.5 with zeros": lambda x: (x * HOLES).norm(1.5, 1),
        "norm 3 of a zero row": lambda x: (x * ZERO_ROW).norm(3, 1),
        "norm of a zero row": lambda x: (x * ZERO_ROW).norm(dim=1),
        "prod with zeros": lambda x: (x * HOLES).prod(1),
        "prod with zeros of all": lambda x: (x * HOLES).prod().expand(3) + x[:, 0],
    }


def cases() -> Iterator[Case]:
    """All of them."""
    yield from functions(4, constant_rows())
    yield from functions(9, {"det of rank one": lambda x: torch.linalg.det(rank_one(x))})
    yield from points(
        4,
        1,
        {
            "abs at 0": (torch.abs, lambda x: without_first(x).abs()),
            "clamp at its bound": (lambda x: x.clamp(0, 9) - x.clamp(-9, -0.2), _clamped),
            "cumprod at 0": lambda x: x.cumprod(1),
            "expm1 at 0": torch.expm1,
            "F.relu at 0": (F.relu, lambda x: without_first(x).relu()),
            "F.leaky_relu at 0": (F.leaky_relu, _leaky),
            "F.hardswish at -3": (lambda x: F.hardswish(x - 3), _hardswish),
            "F.hardsigmoid at 3": (lambda x: F.hardsigmoid(x + 3), _hardsigmoid),
            "maximum of equals": (lambda x: x.maximum(torch.zeros_like(x)), _shared),
            "pow 2 at 0": lambda x: x**2,
            "pow 3 at 0": lambda x: x**3,
            "pow 1 at 0": lambda x: x**1 + x**0,
            "prod at 0": lambda x: x.prod(1),
            "sinc at 0": torch.sinc,
            "special.sinc at 0": torch.special.sinc,
            "sqrt near 0": lambda x: (x + 1e-2).abs().sqrt(),
            "where at its bound": (
                lambda x: torch.where(x > 0, x, 0.0),
                lambda x: torch.where(without_first(x) > 0, without_first(x), 0.0),
            ),
            "xlogy of 0": lambda x: torch.xlogy(x, x + 2),
        },
    )
    yield from points(
        4,
        2,
        {
            "prod at two zeros": lambda x: x.prod(1),
            "norm of zero halves": (
                lambda x: x.view(-1, 2, 2).norm(dim=2),
                _norm_of_second,
            ),
        },
    )


def _clamped(x: Tensor) -> Tensor:
    rest = x[:, 1:]
    return torch.cat([x[:, :1] + 0.2, rest.clamp(0, 9) - rest.clamp(-9, -0.2)], 1)


def _leaky(x: Tensor) -> Tensor:
    return torch.cat([0.01 * x[:, :1], F.leaky_relu(x[:, 1:])], 1)


def _hardswish(x: Tensor) -> Tensor:
    return torch.cat([0 * x[:, :1], F.hardswish(x[:, 1:] - 3)], 1)


def _hardsigmoid(x: Tensor) -> Tensor:
    return torch.cat([0 * x[:, :1] + 1, F.hardsigmoid(x[:, 1:] + 3)], 1)


def _shared(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1] / 2, x[:, 1:].relu()], 1)


def _norm_of_second(x: Tensor) -> Tensor:
    return torch.cat([0 * x[:, :1], x[:, 2:].norm(dim=1, keepdim=True)], 1)
