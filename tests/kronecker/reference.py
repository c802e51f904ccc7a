"""KFAC from its formula: one datum after the other, one gradient after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.kronecker.networks import Network, Note, Params

Total = Callable[[Tensor, Any], Tensor]


class Sums:
    """What is summed over data for a weight or a bias, and the number of inputs."""

    def __init__(self) -> None:
        self.A: Any = 0.0
        self.B: Any = 0.0
        self.joint: Any = 0.0
        self.M = 0


def loss_hessian(total: Total, f: Tensor, y: Any) -> Tensor:
    """``∇²_f`` of the summed loss of one datum."""
    f = f.detach().requires_grad_()
    (slope,) = torch.autograd.grad(total(f, y), f, create_graph=True)
    if not slope.requires_grad:
        return f.new_zeros(f.numel(), f.numel())
    rows = [
        torch.autograd.grad(s, f, retain_graph=True, allow_unused=True)[0]
        for s in slope.flatten()
    ]
    rows = [torch.zeros_like(f) if r is None else r for r in rows]
    return torch.stack([r.flatten() for r in rows])


def columns(H: Tensor) -> Tensor:
    """``S`` with ``S Sᵀ = H``."""
    values, Q = torch.linalg.eigh(H)
    return Q * values.clamp_min(0).sqrt()


def kfac(
    network: Network,
    p: Params,
    total: Total,
    X: Sequence[Tensor],
    y: Sequence[Any],
    Z: float,
    *,
    joint: bool = False,
    reduce: bool = False,
    S: Callable[[Tensor, Any], Tensor] | None = None,
) -> Tensor:
    """The dense matrix.

    Args:
        network: The model.
        p: Its parameters.
        total: The summed loss.
        X: Inputs, one entry ``[1, ...]`` per datum.
        y: Targets, one entry ``[1, ...]`` per datum.
        Z: What the loss divides by over all data.
        joint: Weight and bias in one block.
        reduce: KFAC-reduce.
        S: ``(prediction, y) ->`` the columns ``[m, R]``; by default those of the Hessian.
    """
    weights: dict[Any, Sums] = defaultdict(Sums)
    partners: dict[str, set[Any]] = defaultdict(set)
    shapes: dict[Any, int] = {}
    for x_n, y_n in zip(X, y, strict=True):
        calls: list[Any] = []
        f = network.forward(p, x_n, _noting(calls))
        s = columns(loss_hessian(total, f, y_n)) if S is None else S(f, y_n)
        slopes = [
            torch.autograd.grad(
                f, [c[3] for c in calls], r.reshape(f.shape), retain_graph=True
            )
            for r in s.T
        ]
        users: dict[Any, list[int]] = defaultdict(list)
        for i, (w, b, *_) in enumerate(calls):
            users[w].append(i)
            partners[w].add(b)
            if b is not None:
                users[b].append(i)
                partners[b].add(w)
        for name, mine in users.items():
            sums = weights[name]
            a = calls[mine[0]][3]
            shapes[name] = a.shape[1] if p[name].ndim > 2 or a.ndim > 3 else a.shape[-1]
            z = torch.cat([calls[i][2]() for i in mine]).detach()
            for column in slopes:
                g = torch.cat([calls[i][4](column[i]) for i in mine])
                g = g.sum(0, keepdim=True) if reduce else g
                sums.B = sums.B + g.T @ g / Z
            z = z.mean(0, keepdim=True) if reduce else z
            one = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
            sums.A = sums.A + z.T @ z
            sums.joint = sums.joint + one.T @ one
            sums.M += len(z)
    blocks: list[tuple[list[str], Tensor]] = []
    for name in p:
        if name not in weights:
            continue
        sums = weights[name]
        (other,) = partners[name] if len(partners[name]) == 1 else (None,)
        paired = joint and other is not None and len(partners[other]) == 1
        is_weight = p[name].ndim > 1
        if paired and not is_weight:
            continue
        if paired:
            blocks.append(
                ([name, other], _kron(p[name], sums.B, sums.joint / sums.M, True))
            )
        elif is_weight:
            blocks.append(([name], _kron(p[name], sums.B, sums.A / sums.M, False)))
        else:
            groups = _groups(p, partners[name], sums.A)
            blocks.append(([name], _by_group(sums.B, groups)))
    return assembled(p, blocks)


def _noting(calls: list[Any]) -> Note:
    return lambda *call: calls.append(call)


def _groups(p: Params, weights: set[Any], A: Tensor) -> int:
    """A bias after a grouped convolution is apart for each group."""
    return max(len(A) // p[w][0].numel() for w in weights)


def _by_group(B: Tensor, G: int) -> Tensor:
    a = len(B) // G
    return torch.block_diag(
        *(B[g * a : (g + 1) * a, g * a : (g + 1) * a] for g in range(G))
    )


def _kron(W: Tensor, B: Tensor, A: Tensor, joint: bool) -> Tensor:
    """``B ⊗ A``, for each group of a convolution.

    ``A`` is over the inputs of all groups (and one for the bias).
    """
    d = W[0].numel()
    G = (len(A) - joint) // d
    a = len(B) // G
    one = torch.tensor([len(A) - 1] if joint else [], dtype=torch.long)
    parts = []
    for g in range(G):
        rows = torch.cat([torch.arange(g * d, (g + 1) * d), one])
        Bg = B[g * a : (g + 1) * a, g * a : (g + 1) * a]
        parts.append(torch.kron(Bg, A[rows][:, rows]))
    full = torch.block_diag(*parts)
    if not joint:
        return full
    # rows [w_1, b_1, w_2, b_2, ...]: first all weights, then all biases
    at = torch.arange(len(full)).reshape(-1, d + 1)
    order = torch.cat([at[:, :d].flatten(), at[:, d]])
    return full[order][:, order]


def assembled(p: Params, blocks: Sequence[tuple[Sequence[str], Tensor]]) -> Tensor:
    """Blocks in their places."""
    ends = torch.tensor([t.numel() for t in p.values()]).cumsum(0).tolist()
    place = {
        name: torch.arange(e - t.numel(), e)
        for (name, t), e in zip(p.items(), ends, strict=True)
    }
    out = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    for names, block in blocks:
        at = torch.cat([place[name] for name in names])
        out[at[:, None], at] = block.detach()
    return out
