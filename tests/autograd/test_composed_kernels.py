"""The functions that stand in for torch's, against torch's values and gradients.

Second derivatives are compared with central differences of the gradient.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap
from torch.nn.utils import parametrizations

from curvop.autograd.composed_kernels import ComposedKernels
from tests.comparing import error, random

Function = Callable[[Tensor], Tensor]
VALUE, DERIVATIVE = 1e-13, 1e-9  # differences have the error of a thousand roundings
STEP = 1e-3
X = random(4, 5, seed=1)
HOLES = torch.tensor([[0.0, 1, 1, 1, 0]] * 2 + [[0.0] * 5] + [[1.0] * 5]).double()
TOKENS = torch.tensor([0, 3, 3, 1, 2, 0, 2])
OFFSETS = torch.tensor([0, 2, 2, 5])
BAGS = torch.tensor([[0, 3, 1], [2, 2, 1]])
WEIGHTS = random(7, seed=2)
SPARSE = random(3, 4, seed=3).relu().to_sparse()


def scalar(f: Function) -> Function:
    """A nonlinear function of what ``f`` returns."""

    def g(x: Tensor) -> Tensor:
        out = f(x)
        return (out.sin() * random(*out.shape, seed=8) + out**2 / 3).sum()

    return g


def gradient(f: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(scalar(f)(leaf), leaf)[0]


def composed(f: Function) -> Function:
    def g(x: Tensor) -> Tensor:
        with ComposedKernels():
            return f(x)

    return g


def differences(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """``∂f(x) v`` by central differences of sixth order."""
    d = [(f(x + h * v) - f(x - h * v)) / (2 * h) for h in (STEP, STEP / 2, STEP / 4)]
    coarse, fine = (4 * d[1] - d[0]) / 3, (4 * d[2] - d[1]) / 3
    return (16 * fine - coarse) / 15


def check(f: Function, x: Tensor = X) -> None:
    """Value and gradient as torch's, second derivatives and forward mode as differences'.

    With torch's own function the differences are taken of torch's gradient.
    """
    g = composed(f)
    assert error(g(x), f(x)) <= VALUE
    assert error(gradient(g, x), gradient(f, x)) <= VALUE
    check_derivatives(g, f, x)


def check_derivatives(g: Function, f: Function, x: Tensor) -> None:
    """Second derivatives and forward mode of ``g`` against differences of ``f``."""
    V = random(2, *x.shape, seed=9)
    H = torch.stack([differences(lambda y: gradient(f, y), x, v) for v in V])
    leaf = x.clone().requires_grad_()
    slope = torch.autograd.grad(scalar(g)(leaf), leaf, create_graph=True)[0]
    twice = [torch.autograd.grad(slope, leaf, v, retain_graph=True)[0] for v in V]
    assert error(torch.stack(twice), H) <= DERIVATIVE
    _, pull = vjp(grad(scalar(g)), x)
    assert error(vmap(pull)(V)[0], H) <= DERIVATIVE
    J = torch.stack([differences(f, x, v) for v in V])
    assert error(vmap(lambda v: jvp(g, (x,), (v,))[1])(V), J) <= DERIVATIVE
    assert error(jvp(g, (x,), (V[0],))[1], J[0]) <= DERIVATIVE


@pytest.mark.parametrize("function", [F.hardsigmoid, F.hardswish])
def test_piecewise(function: Callable[..., Tensor]) -> None:
    def clamped(x: Tensor) -> Tensor:
        return (x + 3).clamp(0, 6) / 6 * (x if function is F.hardswish else 1)

    for inplace in (False, True):
        f = lambda x, i=inplace: function(4 * x, inplace=i)  # noqa: E731
        assert error(composed(f)(X), f(X)) <= VALUE
        # in torch's slope 1/6 is a number of single precision
        assert error(gradient(composed(f), X), gradient(f, X)) <= 1e-7
        check_derivatives(composed(f), lambda x: clamped(4 * x), X)
    kinks = torch.tensor([-3.0, 3.0, torch.inf]).double()
    assert torch.equal(composed(function)(kinks), function(kinks))
    assert composed(function)(torch.tensor(torch.nan)).isnan()
    at = kinks[:2]
    assert torch.equal(gradient(composed(function), at), gradient(function, at))


@pytest.mark.parametrize("function", [torch.sinc, torch.special.sinc, Tensor.sinc])
def test_sinc(function: Function) -> None:
    check(function)
    x = torch.tensor([0.0, 1e-6, 1e-3]).double()  # where torch's derivatives lose digits
    leaf = x.clone().requires_grad_()
    value = composed(function)(leaf)
    slope = torch.autograd.grad(value.sum(), leaf, create_graph=True)[0]
    second = torch.autograd.grad(slope.sum(), leaf)[0]
    p = torch.pi**2
    assert error(value, function(x)) <= VALUE
    assert error(slope, -p / 3 * x + p**2 / 30 * x**3) <= 1e-12
    assert error(second, -p / 3 + p**2 / 10 * x**2 - p**3 / 168 * x**4) <= 1e-12


@pytest.mark.parametrize("function", [torch.logaddexp, torch.logaddexp2])
def test_logaddexp(function: Any) -> None:
    check(lambda x: function(x, x.flip(0)))
    check(lambda x: function(x, other=x[:, :1]))
    check(lambda x: function(x, x.flip(0) - 1e4))
    check(lambda x: function(x, torch.full_like(x, -torch.inf)))


def test_logcumsumexp() -> None:
    check(lambda x: torch.logcumsumexp(x, 1))
    check(lambda x: (50 * x).logcumsumexp(dim=-2))


def test_rrelu() -> None:
    check(F.rrelu)
    check(lambda x: nn.RReLU(0.1, 0.5, inplace=True).eval()(2 * x))


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize("include_self", [False, True])
def test_scatter_and_index_reduce(include_self: bool) -> None:
    option = {"include_self": include_self}
    where, rows = torch.tensor([[0, 1, 1], [1, 0, 1]]), torch.tensor([0, 2, 2])
    for dim in (0, -1):
        check(
            lambda x, d=dim: x.scatter_reduce(d, where, x[:2, :3].sin(), "prod", **option)
        )
        args = dim, where, X[:2, :3], "sum"
        check(lambda x, a=args: torch.scatter_reduce(x, *a, **option))
    for reduce in ("prod", "mean", "amax", "amin"):
        check(lambda x, r=reduce: x.index_reduce(0, rows, x[:3].sin(), r, **option))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, torch.inf])
def test_norms(p: float) -> None:
    for holes in (torch.ones_like(HOLES), HOLES):
        if p == torch.inf and holes is HOLES:
            continue  # ties of zeros are kinks
        for dim, keepdim in itertools.product((0, -1), (False, True)):
            check(lambda x, d=dim, k=keepdim, h=holes: (x * h).norm(p, d, k))
        check(lambda x, h=holes: torch.norm(x * h, p=p, dim=1))
        check(lambda x, h=holes: torch.linalg.vector_norm(x * h, p, (0, 1)))
        check(lambda x, h=holes: torch.linalg.norm(x * h, p, dim=1))
        check(lambda x, h=holes: F.normalize(x * h, p) if p == 2 else F.normalize(x, p))
        check(lambda x, h=holes: torch.dist(x * h, torch.zeros_like(x), p))
        check(lambda x, h=holes: F.pairwise_distance(x * h, 0 * x, p, 0.0))
    check(lambda x: F.pairwise_distance(x, x.flip(0), p, keepdim=True))


def test_norms_of_matrices() -> None:
    check(torch.linalg.norm)
    check(torch.norm)
    check(lambda x: torch.linalg.norm(x, "fro"))
    check(lambda x: torch.linalg.matrix_norm(x * HOLES))
    check(lambda x: torch.linalg.matrix_norm(x, "nuc"))
    check(lambda x: torch.linalg.norm(x, 2))
    check(lambda x: x.norm("nuc"))


def test_cosine_similarity() -> None:
    check(lambda x: F.cosine_similarity(x * HOLES, x.flip(0)))
    check(lambda x: F.cosine_similarity(x, x[:1].sin(), dim=-1))
    check(lambda x: nn.CosineSimilarity(0)(x, x.flip(1)))
    # below ε the slope is a convention: that of a length which is not bounded
    f = lambda x: F.cosine_similarity(x, x.flip(0), eps=10.0)  # noqa: E731
    assert error(composed(f)(X), f(X)) <= VALUE
    assert error(gradient(composed(f), X), gradient(f, X)) <= VALUE


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, torch.inf])
def test_distances(p: float) -> None:
    check(lambda x: torch.cdist(x, x[:3].sin() + 2, p=p))
    check(lambda x: torch.cdist(x.view(2, 2, 5), x[:1].cos() + 1, p))
    check(lambda x: F.pdist(x, p))
    # distances that are zero, whatever x is
    same = torch.tensor([[1.0], [1.0], [0.0], [0.0]]).double()
    check(lambda x: torch.cdist(x[:1] * same, x[:1] * same, p=p))
    check(lambda x: F.pdist(x[:1] * same, p))


def test_distances_with_ties() -> None:
    """Each of several largest differences counts for the slope, as in torch."""
    x = torch.tensor([[0.0, 0.0], [1.0, -1.0]]).double()
    f = lambda x: torch.cdist(x, x + torch.ones(2).double(), p=torch.inf)  # noqa: E731
    assert error(gradient(composed(f), x), gradient(f, x)) <= VALUE


def test_large_distances_are_exact() -> None:
    """Torch multiplies matrices for many rows, which loses digits to cancellation."""
    check(lambda x: torch.cdist(x.repeat(8, 1), x + 3)[:2])


@pytest.mark.parametrize("dim", [-1, 0, 1, 2])
def test_weight_norm(dim: int) -> None:
    v = random(3, 2, 4, seed=4)
    g = torch.norm_except_dim(v, 2, dim).sin()
    f = lambda v: torch._weight_norm(v * v.cos(), g * v[0, 0, 0], dim)  # noqa: E731
    check_weight_norm(f, lambda v: weight_norm(v * v.cos(), g * v[0, 0, 0], dim), v)
    if dim in (0, 2):  # the fused kernel has no other
        f = lambda v: torch._weight_norm_interface(v, g, dim)[0]  # noqa: E731
        check_weight_norm(f, lambda v: weight_norm(v, g, dim), v)
    check(lambda v: torch.norm_except_dim(v, 2, dim), v)


def weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """As the paper says; torch's own second derivative is wrong."""
    others = [d for d in range(v.ndim) if dim == -1 or d != dim]
    return v * g / (v * v).sum(others, keepdim=True).sqrt()


def check_weight_norm(f: Function, formula: Function, v: Tensor) -> None:
    assert error(composed(f)(v), f(v)) <= VALUE
    assert error(gradient(composed(f), v), gradient(f, v)) <= VALUE
    check_derivatives(composed(f), formula, v)


@pytest.mark.parametrize("kind", ["parametrization", "hook"])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 3), lambda: nn.Conv1d(1, 2, 2)])
def test_layers_with_weight_norm(make: Any, dim: int | None, kind: str) -> None:
    layer = make().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if kind == "hook":
            layer = nn.utils.weight_norm(layer, dim=dim)
            name = "weight_v"
        else:
            layer = parametrizations.weight_norm(layer, dim=dim)
            name = "parametrizations.weight.original1"
    v = dict(layer.named_parameters())[name].detach().clone()
    x = X if isinstance(layer, nn.Linear) else X[:, None]
    check(lambda v: torch.func.functional_call(layer, {name: v}, (x,)), v)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_lp_pool(axes: int) -> None:
    pool = (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)[axes - 1]
    x = random(2, 1, *[4] * axes, seed=5)
    check(lambda x: pool(x, 2.0, 2), x)
    check(lambda x: pool(x.exp(), norm_type=3, kernel_size=3, stride=2, ceil_mode=True), x)
    zeros = torch.ones_like(x)
    zeros[..., :2] = 0
    g = composed(lambda x: pool(x * zeros, 2.0, 2))
    assert torch.isfinite(jvp(g, (x,), (x,))[1]).all()
    check_derivatives(g, lambda x: pool(x * zeros + 0, 2.0, 2), x)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 6])
@pytest.mark.parametrize("det", [torch.det, torch.linalg.det, Tensor.det])
def test_determinant(det: Function, n: int) -> None:
    A = random(2, n, n, seed=6)
    if n == 0:
        assert torch.equal(composed(det)(A), det(A))
        return
    check(det, A)
    check(det, A[0])


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_determinant_of_singular_matrices(n: int, rank: int) -> None:
    """Against the polynomial that the determinant is."""
    if rank >= n:
        return
    A = random(n, rank, seed=1) @ random(rank, n, seed=2)

    def polynomial(A: Tensor) -> Tensor:
        total = torch.zeros((), dtype=A.dtype)
        for order in itertools.permutations(range(n)):
            pairs = itertools.combinations(order, 2)
            sign = (-1) ** sum(i > j for i, j in pairs)
            term = torch.stack([A[i, j] for i, j in enumerate(order)])
            for_each = [term[i] for i in range(n)]
            product = for_each[0]
            for factor in for_each[1:]:
                product = product * factor
            total = total + sign * product
        return total

    scale = 1e-12
    g = composed(torch.det)
    assert abs(float(g(A) - polynomial(A))) <= scale
    assert (gradient(g, A) - gradient(polynomial, A)).abs().max() <= scale
    V = random(2, n, n, seed=9)
    _, pull = vjp(grad(scalar(polynomial)), A)
    H = torch.stack([pull(v)[0] for v in V])
    _, pull = vjp(grad(scalar(g)), A)
    assert (vmap(pull)(V)[0] - H).abs().max() <= 1e-10


def test_cholesky() -> None:
    def definite(x: Tensor) -> Tensor:
        return x @ x.mT + torch.eye(3).double()

    A = random(2, 3, 3, seed=7)
    for upper in (False, True):
        L = lambda x, u=upper: torch.linalg.cholesky(definite(x), upper=u)  # noqa: E731
        check(lambda x, u=upper: torch.cholesky_inverse(L(x), u), A)  # noqa: B023
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch.cholesky is deprecated
            check(lambda x, u=upper: torch.cholesky(definite(x), u), A)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")
def test_triangular_solve() -> None:
    A = random(2, 3, 3, seed=7)
    b = random(3, 2, seed=8)
    for options in itertools.product((False, True), repeat=3):

        def f(A: Tensor, options: Any = options) -> Tensor:
            matrix = A + 3 * torch.eye(3).double()
            x, copied = torch.triangular_solve(b * A[0, 0, 0], matrix, *options)
            return torch.cat([x, copied], -1)

        check(f, A)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3, -2])
def test_embedding_bag(mode: str, padding_idx: int | None) -> None:
    options = {"mode": mode, "padding_idx": padding_idx}
    check(lambda w: F.embedding_bag(TOKENS, w, OFFSETS, **options))
    check(lambda w: F.embedding_bag(BAGS, w, **options))
    ends = torch.tensor([0, 2, 2, 5, 7])
    check(lambda w: F.embedding_bag(TOKENS, w, ends, include_last_offset=True, **options))
    bag = nn.EmbeddingBag(4, 5, **options).double()
    check(lambda w: torch.func.functional_call(bag, {"weight": w}, (BAGS,)))
    if mode == "sum":
        check(
            lambda w: F.embedding_bag(
                TOKENS, w, OFFSETS, per_sample_weights=WEIGHTS, **options
            )
        )
        check(
            lambda s: F.embedding_bag(TOKENS, X, OFFSETS, per_sample_weights=s, **options),
            WEIGHTS,
        )
        check(
            lambda s: F.embedding_bag(BAGS, X, per_sample_weights=s.view(2, 3), **options),
            WEIGHTS[:6],
        )


def test_embedding_bag_of_nothing() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    for mode in ("sum", "mean", "max"):
        f = lambda w, m=mode: F.embedding_bag(empty, w, torch.zeros(2).long(), mode=m)  # noqa: E731
        assert torch.equal(composed(f)(X), f(X))


def test_embedding_bag_with_kernels_of_its_own() -> None:
    f = lambda w: F.embedding_bag(BAGS, w, scale_grad_by_freq=True)  # noqa: E731
    assert error(gradient(composed(f), X), gradient(f, X)) <= VALUE


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_segment_reduce(reduce: str) -> None:
    lengths = torch.tensor([1, 3])
    check(lambda x: torch.segment_reduce(x, reduce, lengths=lengths))
    check(lambda x: torch.segment_reduce(x, reduce, offsets=torch.tensor([0, 1, 4])))
    f = lambda x: torch.segment_reduce(x, reduce, lengths=lengths, initial=0.5)  # noqa: E731
    assert torch.equal(composed(f)(X), f(X))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_sparse_products() -> None:
    check(lambda x: torch.sparse.mm(SPARSE, x))
    check(lambda x: SPARSE @ x)
    check(lambda x: torch.mm(SPARSE, x))
    check(lambda x: torch.matmul(SPARSE, x))
    check(lambda x: SPARSE.mv(x[:, 0]))
    check(lambda x: torch.sparse.addmm(x[:3], SPARSE, x, beta=0.5, alpha=2))
    assert composed(lambda x: SPARSE @ SPARSE.T)(X).is_sparse


def test_losses() -> None:
    """Those that stand in for torch's in the loss do so in the model."""
    targets = torch.tensor([[1, 2], [2, 2]])
    sound = random(6, 2, 3, seed=3)
    check(
        lambda x: F.ctc_loss(x.log_softmax(2), targets, (6, 6), (2, 2), reduction="none"),
        sound,
    )
    check(lambda x: F.multi_margin_loss(x, torch.tensor([0, 1, 2, 3]), p=2))


def test_what_is_not_composed_is_torchs() -> None:
    assert torch.equal(composed(torch.sin)(X), X.sin())
    z = torch.complex(X, X)
    for f in (torch.linalg.vector_norm, torch.sinc, F.normalize):
        assert torch.equal(composed(f)(z), f(z))
    out = torch.empty_like(X)
    assert composed(lambda x: torch.sinc(x, out=out))(X) is out


def test_outside_nothing_changes() -> None:
    with ComposedKernels():
        pass
    leaf = torch.zeros(1, requires_grad=True)
    slope = torch.autograd.grad(torch.sinc(leaf).sum(), leaf, create_graph=True)[0]
    assert torch.autograd.grad(slope, leaf)[0].isnan().all()
