"""The product that all others are held against: plain double backward, wide numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from networks import Workload
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel


def reference(w: Workload, matrix: str, v: Tensor) -> Tensor:
    """The matrix times ``v``, ``[P]``; in float64, on a GPU in float32."""
    device = v.device
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    w = copy.deepcopy(w).to(device, dtype)
    V = w.blocks(v.to(dtype))
    total = [torch.zeros_like(p) for p in w.params]
    no_tf32 = torch.backends.cudnn.flags(allow_tf32=False)
    with no_tf32, sdpa_kernel(SDPBackend.MATH):
        for X, y in w.data:
            for t, b in zip(total, _BATCH[matrix](w, X, y, V), strict=True):
                t += b
    return torch.cat([t.flatten() for t in total]) / w.num_terms


def _hessian(w: Workload, X: Tensor, y: Tensor, V: list[Tensor]) -> Sequence[Tensor]:
    return _through(lambda: w.terms(w.model(X), y).sum(), w.params, V)


def _ggn(w: Workload, X: Tensor, y: Tensor, V: list[Tensor]) -> Sequence[Tensor]:
    def loss_hessian(f: Tensor, Jv: Tensor) -> Tensor:
        f = f.detach().requires_grad_()
        return _through(lambda: w.terms(f, y).sum(), [f], [Jv])[0]

    return _sandwich(w.model(X), w.params, V, loss_hessian)


def _ef(w: Workload, X: Tensor, y: Tensor, V: list[Tensor]) -> Sequence[Tensor]:
    return _sandwich(w.terms(w.model(X), y), w.params, V, lambda _, Jv: Jv)


_BATCH = {"Hessian": _hessian, "GGN": _ggn, "EF": _ef}


def _through(
    loss: Callable[[], Tensor], params: list[Tensor], V: list[Tensor]
) -> Sequence[Tensor]:
    """The Hessian of a loss: the gradient of ``⟨gradient, v⟩``."""
    g = grad(loss(), params, create_graph=True)
    return grad(g, params, V)


def _sandwich(
    f: Tensor,
    params: list[Tensor],
    V: list[Tensor],
    B: Callable[[Tensor, Tensor], Tensor],
) -> Sequence[Tensor]:
    """``Jᵀ B J v``; ``J v`` is the derivative of ``Jᵀ u``, which is linear in ``u``."""
    u = torch.zeros_like(f, requires_grad=True)
    Jtu = grad(f, params, u, create_graph=True)
    (Jv,) = grad(Jtu, u, V, retain_graph=True)
    return grad(f, params, B(f, Jv))
