"""The two ways to differentiate, the choice between them, and precision."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)
from tests.curvature import dense

N, C = 5, 2
X, Y = dense.normal(N, 6, seed=1), dense.normal(N, C, seed=2)
PARTS = [(0, 1, 2), (3, 4)]
CURVATURES = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
JACOBIANS = (JacobianLinearOperator, TransposedJacobianLinearOperator)
of_curvature = pytest.mark.parametrize("cls", CURVATURES)
of_all = pytest.mark.parametrize("cls", CURVATURES + JACOBIANS)
both_ways = pytest.mark.parametrize("way", ["func", "backpack"])


def build(
    cls: Any, model: Any, params: Any = None, data: Any = None, **options: Any
) -> Any:
    loss = () if cls in JACOBIANS else (nn.MSELoss(),)
    params = list(model.parameters()) if params is None else params
    data = dense.batches(X, Y, PARTS) if data is None else data
    return cls(model, *loss, params, data, **options)


def truth(cls: Any, model: Any, params: Any = None, X: Tensor = X, Y: Tensor = Y) -> Tensor:
    """The dense matrix by plain double backward."""
    params = list(model.parameters()) if params is None else params
    if cls in JACOBIANS:
        J = dense.jacobian(model, params, X)
        return J if cls is JacobianLinearOperator else J.T
    if cls is EFLinearOperator:
        terms = nn.MSELoss(reduction="none")
        return dense.empirical_fisher(model, nn.MSELoss(), terms, params, X, Y)
    matrix = dense.hessian if cls is HessianLinearOperator else dense.ggn
    return matrix(model, nn.MSELoss(), params, X, Y)


def check(cls: Any, model: Any, params: Any = None, **options: Any) -> None:
    """Many columns and one column take different paths; both are compared."""
    A, B = build(cls, model, params, **options), truth(cls, model, params)
    assert dense.relative_error(A.to_dense(), B) <= 1e-8
    v = dense.normal(B.shape[1], seed=3)
    assert dense.relative_error(A @ v, B @ v) <= 1e-8


# --------------------------------------------------------------------- norm layers


def norms() -> dict[str, nn.Module]:
    """Norm layers between a linear layer and a nonlinearity, on ``[n, 4, 3]``."""
    torch.manual_seed(1)
    layers = {
        "LayerNorm": nn.LayerNorm([4, 3]),
        "LayerNorm of one axis": nn.LayerNorm(3),
        "LayerNorm without weights": nn.LayerNorm(3, elementwise_affine=False),
        "RMSNorm": nn.RMSNorm(3),
        "GroupNorm": nn.GroupNorm(2, 4),
        "GroupNorm of one group": nn.GroupNorm(1, 4),
        "InstanceNorm": nn.InstanceNorm1d(4, affine=True),
        "InstanceNorm with statistics": nn.InstanceNorm1d(4, track_running_stats=True),
        "BatchNorm evaluated": nn.BatchNorm1d(4).eval(),
        "LocalResponseNorm": nn.LocalResponseNorm(2),
    }
    for layer in layers.values():
        for p in layer.parameters():
            nn.init.normal_(p)
    return layers


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(6, 12)
        self.norm = norm
        self.leave = nn.Linear(12, C)

    def forward(self, X: Tensor) -> Tensor:
        h = self.norm(self.enter(X).unflatten(1, (4, 3)))
        out: Tensor = self.leave(h.flatten(1).tanh())
        return out


def part_of(model: nn.Module) -> list[Tensor]:
    """Parameters before, in and after the norm; few, for speed."""
    return [p for k, p in model.named_parameters() if k != "enter.weight"]


@of_all
@both_ways
@pytest.mark.parametrize("norm", norms().values(), ids=norms())
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_norm_layers(cls: Any, norm: nn.Module, way: str) -> None:
    model = Normed(norm).double()
    model.norm.eval()
    check(cls, model, part_of(model), differentiation=way)


def statistics() -> dict[str, nn.Module]:
    return {
        "affine": nn.BatchNorm1d(4),
        "without statistics": nn.BatchNorm1d(4, track_running_stats=False),
        "without momentum": nn.BatchNorm1d(4, momentum=None),
    }


@of_all
@both_ways
@pytest.mark.parametrize("norm", statistics().values(), ids=statistics())
def test_batch_norm_in_train_mode(cls: Any, norm: nn.Module, way: str) -> None:
    """All data in one batch; the statistics of the batch are differentiated."""
    model = Normed(norm).double()
    check(cls, model, part_of(model), data=[(X, Y)], differentiation=way)


def test_truth_by_central_differences() -> None:
    """The truth through LayerNorm is confirmed without second derivatives."""
    model = Normed(nn.LayerNorm([4, 3])).double()
    params = part_of(model)
    H = truth(HessianLinearOperator, model, params)
    v = dense.normal(len(H), seed=4)

    def gradient(step: float) -> Tensor:
        pieces = v.split([p.numel() for p in params])
        with torch.no_grad():
            for p, piece in zip(params, pieces, strict=True):
                p += step * piece.view_as(p)
        loss = F.mse_loss(model(X), Y)
        slopes = dense.flat(torch.autograd.grad(loss, params))
        with torch.no_grad():
            for p, piece in zip(params, pieces, strict=True):
                p -= step * piece.view_as(p)
        return slopes

    difference = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    assert dense.relative_error(difference, H @ v) <= 1e-7


# ---------------------------------------------------------------- attention, layers


class Attending(nn.Module):
    """A layer on ``[n, 2, 4]``."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(6, 8)
        self.layer = layer
        self.leave = nn.Linear(8, C)

    def forward(self, X: Tensor) -> Tensor:
        h = self.enter(X).unflatten(1, (2, 4))
        out: Tensor = self.leave(self.layer(h).flatten(1).tanh())
        return out


class SelfAttention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.attention(h, h, h, need_weights=False)[0]
        return out


class Scaled(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        heads = h.unflatten(2, (2, 2)).transpose(1, 2)
        out = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return out.transpose(1, 2).flatten(2)


def attentions() -> dict[str, nn.Module]:
    torch.manual_seed(2)
    return {
        "scaled_dot_product": Scaled(),
        "MultiheadAttention": SelfAttention(),
        "without bias": SelfAttention(bias=False),
        "encoder layer": nn.TransformerEncoderLayer(4, 2, 3, 0.0, batch_first=True),
        "norm first": nn.TransformerEncoderLayer(
            4, 2, 3, 0.0, "gelu", batch_first=True, norm_first=True
        ),
    }


@of_all
@both_ways
@pytest.mark.parametrize("layer", attentions().values(), ids=attentions())
@pytest.mark.parametrize("training", [True, False])
def test_attention(cls: Any, layer: nn.Module, way: str, training: bool) -> None:
    model = Attending(layer).double().train(training)
    params = [p for k, p in model.named_parameters() if k.startswith(("layer", "leave"))]
    A = build(cls, model, params[:4], differentiation=way)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.train()  # no fused inference path in the truth; dropout is zero
        B = truth(cls, model, params[:4])
    model.train(training)
    assert dense.relative_error(A.to_dense(), B) <= 1e-8


# ----------------------------------------------------------------------- the choice


class Square(torch.autograd.Function):
    """A custom function of the old style: no ``setup_context``, no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class ModernSquare(torch.autograd.Function):
    """The same in the new style, with forward mode and vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * x * grad

    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * x * v


class Through(nn.Module):
    """Some function inside of a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(6, 3, dtype=torch.float64)
        self.leave = nn.Linear(3, C, dtype=torch.float64)
        self.function = function

    def forward(self, X: Tensor) -> Tensor:
        out: Tensor = self.leave(self.function(self.enter(X)))
        return out


def written(h: Tensor) -> Tensor:
    """In place, into memory that is no function of the parameters."""
    out = torch.zeros(h.shape, dtype=h.dtype)
    for i in range(h.shape[1]):
        out[:, i] = h[:, i] ** 2
    return out


def checkpointed(h: Tensor) -> Tensor:
    out: Tensor = checkpoint(lambda z: (z * z).tanh(), h, use_reentrant=False)
    return out


def looked_at(h: Tensor) -> Tensor:
    """Control flow on values."""
    return h**2 if float(h.detach().sum()) > -1e9 else h


def aggregated(h: Tensor) -> Tensor:
    """A product with a sparse matrix, as over the edges of a graph."""
    edges = torch.eye(h.shape[1], dtype=h.dtype).flip(0).to_sparse()
    out: Tensor = torch.sparse.mm(edges, h.T.tanh()).T
    return out


@of_all
def test_what_torch_does_not_differentiate_is_composed(cls: Any) -> None:
    model = Through(aggregated)
    for way in ("auto", "func", "backpack"):  # warnings are errors here
        check(cls, model, differentiation=way)


@of_all
def test_fall_back_with_one_warning(cls: Any) -> None:
    """Exactly one warning, which names the reason; nothing is asked again later."""
    model = Through(Square.apply)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        A = build(cls, model)
        A.to_dense()
        A @ torch.ones(A.shape[1], dtype=torch.float64)
    messages = [str(w.message) for w in caught]
    (message,) = messages
    assert message.startswith("torch.func does not support this model (")
    reason = message[message.index("(") + 1 :]
    assert "setup_context" in reason or "jvp function for custom" in reason
    assert "Using backpack (double backward) instead" in message
    assert "differentiation='backpack'" in message
    assert dense.relative_error(A.to_dense(), truth(cls, model)) <= 1e-8


@of_all
def test_forced_way_does_not_fall_back(cls: Any) -> None:
    model = Through(Square.apply)
    check(cls, model, differentiation="backpack")
    with pytest.raises(RuntimeError, match=r"setup_context|jvp function for custom"):
        build(cls, model, differentiation="func").to_dense()


@of_all
def test_supported_models_use_torch_func_silently(cls: Any) -> None:
    A = build(cls, Through(torch.tanh))  # warnings are errors here
    J = A._J if cls is TransposedJacobianLinearOperator else A
    assert J.ways[0].name == "torch.func"


@of_all
@pytest.mark.parametrize("way", ["auto", "func", "backpack"])
def test_modern_custom_function(cls: Any, way: str) -> None:
    check(cls, Through(ModernSquare.apply), differentiation=way)


@of_all
@pytest.mark.parametrize("function", [checkpointed, looked_at, written])
def test_difficult_functions(cls: Any, function: Any) -> None:
    model = Through(function)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        A = build(cls, model)
    assert len(caught) <= 1
    assert dense.relative_error(A.to_dense(), truth(cls, model)) <= 1e-8
    check(cls, model, differentiation="backpack")


@of_all
def test_error_of_the_model_is_not_hidden(cls: Any) -> None:
    def broken(h: Tensor) -> Tensor:
        raise ZeroDivisionError("my own mistake")

    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        build(cls, Through(broken))


@of_all
def test_warning_without_check(cls: Any) -> None:
    """The first product finds out; a value does not remember."""
    A = build(cls, Through(Square.apply), check_deterministic=False, num_data=N)
    with pytest.warns(UserWarning, match="Using backpack"):
        product = A @ torch.ones(A.shape[1], 2, dtype=torch.float64)
    assert product.shape == (A.shape[0], 2)


# ------------------------------------------------------------------------- closures


def closures() -> dict[str, Any]:
    """Callables over their own parameters: ``(model, params)``."""
    w = dense.normal(6, C, seed=5).requires_grad_()
    b = dense.normal(C, seed=6)  # does not require a gradient
    net = Through(torch.tanh)
    return {
        "lambda": (lambda X: (X @ w + b).sin(), [w, b]),
        "frozen rest": (lambda X: (X @ w + b).sin(), [b]),
        "partial": (functools.partial(torch.addmm, b, mat2=w), [w, b]),
        "module": (lambda X: net(X) ** 2, list(net.parameters())[1:]),
        "unused": (lambda X: (X @ w).sin(), [w, b]),
        "derived": (lambda X: X @ (w * b.exp()) + b, [b, w]),
    }


@of_all
@pytest.mark.parametrize("way", ["auto", "backpack"])
@pytest.mark.parametrize(("model", "params"), closures().values(), ids=closures())
def test_closures(cls: Any, model: Any, params: list[Tensor], way: str) -> None:
    requires_grad = [p.requires_grad for p in params]
    A = build(cls, model, params, differentiation=way)
    assert [p.requires_grad for p in params] == requires_grad
    for p in params:
        p.requires_grad_()
    B = truth(cls, model, params)
    for p, flag in zip(params, requires_grad, strict=True):
        p.requires_grad_(flag)
    assert dense.relative_error(A.to_dense(), B) <= 1e-8


@of_all
@both_ways
def test_functional_model(cls: Any, way: str) -> None:
    w, b = dense.normal(6, C, seed=5), dense.normal(C, seed=6)

    def model(params: dict[str, Tensor], X: Tensor) -> Tensor:
        return (X @ params["w"] + params["b"]).sin()

    leaves = [w.clone().requires_grad_(), b.clone().requires_grad_()]
    B = truth(cls, lambda X: model({"w": leaves[0], "b": leaves[1]}, X), leaves)
    A = build(cls, model, {"w": w, "b": b}, differentiation=way)
    assert dense.relative_error(A.to_dense(), B) <= 1e-8


@of_all
@both_ways
def test_other_values_for_the_parameters_of_a_module(cls: Any, way: str) -> None:
    """A dict of tensors by name: the module's own values do not matter."""
    model = Through(torch.tanh)
    params = {name: p.detach() + 0.5 for name, p in model.named_parameters()}
    A = build(cls, model, params, differentiation=way)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5
    assert dense.relative_error(A.to_dense(), truth(cls, model)) <= 1e-8


@of_curvature
@both_ways
def test_unused_parameters_have_zero_rows(cls: Any, way: str) -> None:
    model = Through(torch.tanh)
    model.spare = nn.Linear(2, 2, dtype=torch.float64)
    A = build(cls, model, differentiation=way).to_dense()
    used = sum(p.numel() for p in Through(torch.tanh).parameters())
    assert not A[used:].any()
    assert not A[:, used:].any()
    assert dense.relative_error(A[:used, :used], truth(cls, Through(torch.tanh))) <= 1e-8


@of_all
@both_ways
def test_only_unused_parameters(cls: Any, way: str) -> None:
    model = Through(torch.tanh)
    model.spare = nn.Linear(2, 2, dtype=torch.float64)
    A = build(cls, model, list(model.spare.parameters()), differentiation=way)
    assert not A.to_dense().any()


@of_all
@both_ways
def test_linear_model(cls: Any, way: str) -> None:
    """The gradient is constant, the Hessian of each output zero."""
    check(cls, nn.Linear(6, C, dtype=torch.float64), differentiation=way)


@of_all
@both_ways
def test_tied_weights(cls: Any, way: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enter = nn.Linear(6, 6, bias=False, dtype=torch.float64)
            self.again = nn.Linear(6, 6, dtype=torch.float64)
            self.again.weight = self.enter.weight

        def forward(self, X: Tensor) -> Tensor:
            out: Tensor = self.again(self.enter(X).tanh())[:, :C]
            return out

    check(cls, Tied(), differentiation=way)


# ------------------------------------------------------------------------ precision

BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}


def test_hessian_of_wide_convolutions_takes_one_column_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cls = HessianLinearOperator
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        nn.Conv1d(1, 2, 3),
        nn.GroupNorm(1, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, C),
    ).double()
    mapped = build(cls, model).to_dense()
    monkeypatch.setattr("curvop.curvature.hessian.WIDE", 0)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("vmap")

    monkeypatch.setattr("curvop.derivatives.torch_func.vmap", refuse)
    A = build(cls, model, differentiation="func").to_dense()
    assert dense.relative_error(A, truth(cls, model)) <= 1e-10
    assert dense.relative_error(A, mapped) <= 1e-10


@of_all
@both_ways
@pytest.mark.parametrize("dtype", BOUNDS)
def test_precision(cls: Any, dtype: torch.dtype, way: str) -> None:
    model = dense.Waves(6, (C,))
    B = truth(cls, model)
    data = [(x.to(dtype), y.to(dtype)) for x, y in dense.batches(X, Y, PARTS)]
    A = build(cls, model.to(dtype), data=data, differentiation=way)
    assert A.dtype == dtype
    D = A.to_dense()
    assert D.dtype == dtype
    assert dense.relative_error(D, B) <= BOUNDS[dtype]
    v = torch.ones(A.shape[1], dtype=dtype)
    assert (A @ v).dtype == dtype
    assert dense.relative_error(A @ v, B @ v.double()) <= BOUNDS[dtype]


class Mixed(nn.Module):
    """A head in another precision than the rest."""

    def __init__(self, low: torch.dtype, high: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(6, 3, dtype=torch.float64).to(low)
        self.leave = nn.Linear(3, C, dtype=torch.float64).to(high)

    def forward(self, X: Tensor) -> Tensor:
        h = self.enter(X.to(self.enter.weight.dtype)).tanh()
        out: Tensor = self.leave(h.to(self.leave.weight.dtype))
        return out


@of_all
@both_ways
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_mixed_precision(cls: Any, low: torch.dtype, high: torch.dtype, way: str) -> None:
    model = Mixed(low, high)
    data = [(x, y.to(high)) for x, y in dense.batches(X, Y, PARTS)]
    A = build(cls, model, data=data, differentiation=way)
    assert A.dtype == torch.promote_types(low, high)
    B = truth(cls, Mixed(torch.float64, torch.float64).double())
    bound = BOUNDS[min((low, high), key=lambda t: t.itemsize)]
    assert dense.relative_error(A.to_dense(), B) <= bound
    blocks = A @ [torch.ones(shape, dtype=A.dtype) for shape in A.domain]
    assert {b.dtype for b in blocks} == {A.dtype}


@of_curvature
@both_ways
def test_precision_of_sums_over_batches(cls: Any, way: str) -> None:
    """Half precision accumulates in single: many batches lose nothing more."""
    model = dense.Waves(6, (C,))
    many = 100
    B = truth(cls, model)
    dtype = torch.bfloat16
    data = [(X.to(dtype), Y.to(dtype))] * many
    A = build(cls, model.to(dtype), data=data, differentiation=way)
    assert dense.relative_error(A.to_dense(), B) <= BOUNDS[dtype]


class Mistaken(torch.autograd.Function):
    """A square whose forward mode has the wrong slope."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * slope

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.abs() * tangent


def test_forward_mode_that_disagrees_with_reverse_mode_is_left() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Mistaken.apply(self.first(x)))

    torch.manual_seed(0)
    net = Net()
    data = [(torch.randn(5, 3).double(), torch.randn(5, 2).double())]
    args = (net, nn.MSELoss(), list(net.parameters()), data)
    with pytest.warns(UserWarning, match=r"off by .* custom function Mistaken"):
        G = GGNLinearOperator(*args)
    right = GGNLinearOperator(*args, differentiation="backpack").to_dense()
    assert (G.to_dense() - right).norm() <= 1e-12 * right.norm()
