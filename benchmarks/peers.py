"""What is compared: each library behind one function ``(workload) -> (v -> product)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import curvlinops
import torch
from networks import Workload
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvop

Product = Callable[[Tensor], Tensor]  # [P] -> [P], or [P, K] -> [P, K]
Make = Callable[[Workload], Product]


@dataclass(frozen=True)
class Contender:
    """A library, or a way to use it."""

    name: str
    package: str
    products: Mapping[str, Make]  # by matrix: "Hessian", "GGN", "EF"
    widest: int = 1  # columns up to which it is timed; 1: it multiplies vectors only


def flat(blocks: Any) -> Tensor:
    return torch.cat([b.detach().flatten() for b in blocks])


def math_attention(run: Callable[..., Any]) -> Callable[..., Any]:
    """What users of the peers must do by hand: fused attention is not differentiable twice.

    Changes nothing for models without attention.
    """

    def wrapped(*args: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return run(*args)

    return wrapped


# ------------------------------------------------------------------------------- curvop

OURS: dict[str, Callable[..., Any]] = {
    "Hessian": curvop.HessianLinearOperator,
    "GGN": curvop.GGNLinearOperator,
    "EF": curvop.EFLinearOperator,
}


def build_ours(w: Workload, matrix: str, **kwargs: Any) -> Any:
    return OURS[matrix](w.model, w.loss_func, w.params, w.data, **kwargs)


def _ours(matrix: str) -> Make:
    def make(w: Workload) -> Product:
        A = build_ours(w, matrix, check_deterministic=False, num_data=w.num_data)
        return lambda v: A @ v

    return make


def _linearised(matrix: str) -> Make:
    def make(w: Workload) -> Product:
        A = build_ours(w, matrix, check_deterministic=False, num_data=w.num_data)
        L = A.linearize()
        return lambda v: L @ v

    return make


# --------------------------------------------------------------------------- curvlinops

THEIRS = {
    "Hessian": curvlinops.HessianLinearOperator,
    "GGN": curvlinops.GGNLinearOperator,
    "EF": curvlinops.EFLinearOperator,
}


def build_curvlinops(w: Workload, matrix: str, **kwargs: Any) -> Any:
    return THEIRS[matrix](w.model, w.loss_func, w.params, w.data, **kwargs)


def _curvlinops(matrix: str) -> Make:
    def make(w: Workload) -> Product:
        A = build_curvlinops(w, matrix, check_deterministic=False, num_data=w.num_data)
        return math_attention(lambda v: A @ v)

    return make


# ------------------------------------------------------------------ hessian-eigenthings


def _eigenthings_hessian(w: Workload) -> Product:
    from hessian_eigenthings import HessianOperator, supervised_loss

    A = HessianOperator(
        w.model, w.data, supervised_loss(w.loss_func), method="autograd"
    )  # the mean of the batches' means: ours are of one size
    return math_attention(A.matvec)


def _eigenthings_ggn(w: Workload) -> Product:
    from hessian_eigenthings import (
        GGNOperator,
        supervised_forward,
        supervised_loss_of_output,
    )

    loss = supervised_loss_of_output(w.loss_func)
    return math_attention(GGNOperator(w.model, w.data, supervised_forward, loss).matvec)


def _eigenthings_ef(w: Workload) -> Product:
    from hessian_eigenthings import EmpiricalFisherOperator

    if w.num_terms != w.num_data:
        raise NotImplementedError("one gradient per example, not per target")

    def loss(model: Callable[[Tensor], Tensor], sample: tuple[Tensor, Tensor]) -> Tensor:
        X, y = sample
        return w.loss_func(model(X[None]), y[None])

    return math_attention(EmpiricalFisherOperator(w.model, w.data, loss).matvec)


# ---------------------------------------------------------------------------- PyHessian


def _pyhessian_hessian(w: Workload) -> Product:
    from pyhessian import hessian

    cuda = w.params[0].is_cuda
    training = w.model.training
    A = hessian(w.model, w.loss_func, dataloader=w.data, cuda=cuda)
    w.model.train(training)
    return math_attention(lambda v: flat(A.dataloader_hv_product(w.blocks(v))[1]))


# ----------------------------------------------------------------------------- BackPACK


def _backpack_hessian(w: Workload) -> Product:
    from backpack.hessianfree.hvp import hessian_vector_product

    def batch(X: Tensor, y: Tensor, V: list[Tensor]) -> Any:
        return hessian_vector_product(w.loss_func(w.model(X), y), w.params, V)

    return _over_batches(w, batch)


def _backpack_ggn(w: Workload) -> Product:
    from backpack.hessianfree.ggnvp import ggn_vector_product_from_plist

    def batch(X: Tensor, y: Tensor, V: list[Tensor]) -> Any:
        f = w.model(X)
        return ggn_vector_product_from_plist(w.loss_func(f, y), f, w.params, V)

    return _over_batches(w, batch)


def _over_batches(w: Workload, batch: Callable[[Tensor, Tensor, list[Tensor]], Any]) -> Any:
    """The mean over the data of a product of each batch's mean loss."""

    def product(v: Tensor) -> Tensor:
        V = w.blocks(v)
        shares = [y.numel() / w.num_terms for _, y in w.data]
        products = (flat(batch(X, y, V)) for X, y in w.data)
        return sum(share * p for share, p in zip(shares, products, strict=True))

    return math_attention(product)


# ---------------------------------------------------------------------- plain torch.func

Function = Callable[[dict[str, Tensor]], Tensor]


def _func(batch: Callable[[Workload, Tensor, Tensor, Any, Any], Any]) -> Make:
    """Sum over batches; columns by vmap."""

    def make(w: Workload) -> Product:
        params = {name: p.detach() for name, p in w.model.named_parameters()}

        def product(v: Tensor) -> Tensor:
            tangents = dict(zip(params, w.blocks(v), strict=True))
            sums = [torch.zeros_like(p) for p in params.values()]
            for X, y in w.data:
                part = batch(w, X, y, params, tangents)
                sums = [s + b for s, b in zip(sums, part.values(), strict=True)]
            return torch.cat([s.flatten() for s in sums]) / w.num_terms

        def columns(V: Tensor) -> Tensor:
            return product(V) if V.ndim == 1 else vmap(product, 1, 1)(V)

        return math_attention(columns)

    return make


def _terms(w: Workload, X: Tensor, y: Tensor) -> Function:
    return lambda params: w.terms(functional_call(w.model, params, (X,)), y)


def _func_hessian(w: Workload, X: Tensor, y: Tensor, params: Any, tangents: Any) -> Any:
    terms = _terms(w, X, y)
    gradient = grad(lambda p: terms(p).sum())
    return jvp(gradient, (params,), (tangents,))[1]


def _func_ggn(w: Workload, X: Tensor, y: Tensor, params: Any, tangents: Any) -> Any:
    def model(p: dict[str, Tensor]) -> Tensor:
        return functional_call(w.model, p, (X,))

    f, Jv = jvp(model, (params,), (tangents,))
    BJv = jvp(grad(lambda f: w.terms(f, y).sum()), (f,), (Jv,))[1]
    return vjp(model, params)[1](BJv)[0]


def _func_ef(w: Workload, X: Tensor, y: Tensor, params: Any, tangents: Any) -> Any:
    terms = _terms(w, X, y)
    Jv = jvp(terms, (params,), (tangents,))[1]
    return vjp(terms, params)[1](Jv)[0]


# ----------------------------------------------------------------------------------- all

MATRICES = ("Hessian", "GGN", "EF")
MAIN = BASELINE, PLAIN, LINEARISED = ("curvlinops", "curvop", "curvop, linearised")

CONTENDERS: tuple[Contender, ...] = (
    Contender(
        BASELINE, "curvlinops-for-pytorch", {m: _curvlinops(m) for m in MATRICES}, 1000
    ),
    Contender(PLAIN, "curvop", {m: _ours(m) for m in MATRICES}, 1000),
    Contender(LINEARISED, "curvop", {m: _linearised(m) for m in MATRICES}, 1000),
    Contender(
        "torch.func",
        "torch",
        {"Hessian": _func(_func_hessian), "GGN": _func(_func_ggn), "EF": _func(_func_ef)},
        8,  # beyond, it only repeats curvlinops: the same composition
    ),
    Contender(
        "hessian-eigenthings",
        "hessian-eigenthings",
        {"Hessian": _eigenthings_hessian, "GGN": _eigenthings_ggn, "EF": _eigenthings_ef},
    ),
    Contender("PyHessian", "pyhessian", {"Hessian": _pyhessian_hessian}),
    Contender(
        "BackPACK",
        "backpack-for-pytorch",
        {"Hessian": _backpack_hessian, "GGN": _backpack_ggn},
    ),
)
BY_NAME = {c.name: c for c in CONTENDERS}
