"""The proof at construction: every way is compared, what is wrong is left and named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    WrongDerivativeError,
)
from curvop.curvature.proof import FEW, UNCHECKED, Proof
from curvop.derivatives import Differences, Way
from curvop.inspection.measuring import peak_bytes_of
from tests.inspection.models import Around, Through, around, cube
from tests.sweep.custom import (
    CubeNew,
    KeptUntracked,
    OfData,
    Once,
    OnTheContext,
    SavedUntracked,
    WithNumPy,
    WithoutForwardMode,
    WithoutGraph,
    WrongForwardMode,
)

from . import dense
from .doors import differences

N = 24
X, Y = dense.normal(N, 3, seed=1), dense.normal(N, 2, seed=2)
CURVATURES = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
ALL = (*CURVATURES, JacobianLinearOperator)
of_all = pytest.mark.parametrize("cls", ALL)


class WrongVectorised(CubeNew):
    """Forward mode is right for one column, wrong for several at once."""

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        stack = torch._C._functorch.get_interpreter_stack() or []
        is_vectorised = torch._C._functorch.TransformType.Vmap in {i.key() for i in stack}
        return (2 if is_vectorised else 3) * x**2 * t


# What its double backward gives another product of than differences do.
WRONG_TWICE = (
    KeptUntracked,
    SavedUntracked,
    OnTheContext,
    Once,
    WithNumPy,
    WithoutGraph,
    OfData,
)
WRONG_FORWARD = (WrongForwardMode, WrongVectorised)


def build(cls: Any, model: Any, way: Way = "auto", **options: Any) -> Any:
    """The operator on all data at once."""
    params = options.pop("params", None) or list(model.parameters())
    data = options.pop("data", None) or [(X, Y)]
    loss = () if cls is JacobianLinearOperator else (options.pop("loss", nn.MSELoss()),)
    return cls(model, *loss, params, data, differentiation=way, **options)


def loudly(*args: Any, **options: Any) -> tuple[Any, list[str]]:
    """The operator, and what was warned of on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        A = build(*args, **options)
    return A, [str(w.message) for w in caught]


def truth(cls: Any, model: nn.Module) -> Tensor:
    """The dense matrix by plain double backward, of a model that has one."""
    params = list(model.parameters())
    if cls is JacobianLinearOperator:
        return dense.jacobian(model, params, X)
    if cls is EFLinearOperator:
        terms = nn.MSELoss(reduction="none")
        return dense.empirical_fisher(model, nn.MSELoss(), terms, params, X, Y)
    matrix = dense.hessian if cls is HessianLinearOperator else dense.ggn
    return matrix(model, nn.MSELoss(), params, X, Y)


def agree(A: Any, B: Tensor, tolerance: float = 1e-8) -> None:
    """One column and many take different paths."""
    assert dense.relative_error(A.to_dense(), B) <= tolerance
    v = dense.normal(B.shape[1], seed=3)
    assert dense.relative_error(A @ v, B @ v) <= tolerance


# ------------------------------------------------------------------- what is wrong


@of_all
@pytest.mark.parametrize("function", WRONG_TWICE, ids=lambda f: f.__name__)
def test_wrong_double_backward(cls: Any, function: type[Function]) -> None:
    """Products are right whatever the custom function does in double backward."""
    A, said = loudly(cls, around(function, torch.float64))
    agree(A, truth(cls, around(cube, torch.float64)))
    assert len(said) == 1  # torch.func refuses the old form of custom functions
    if cls is HessianLinearOperator:
        assert A.differentiation == "differences"
        where = f"at fault is custom function {function.__name__} in layer Around"
        for part in ("backpack", where, "Using differences", "relative error of "):
            assert part in said[0]
    else:
        assert "at fault" not in said[0] or function.__name__ in said[0]


@pytest.mark.parametrize("function", WRONG_TWICE, ids=lambda f: f.__name__)
def test_the_last_way_is_checked_like_the_first(function: type[Function]) -> None:
    with pytest.raises(WrongDerivativeError) as info:
        build(HessianLinearOperator, around(function, torch.float64), "backpack")
    message = str(info.value)
    for part in (
        "backpack (double backward) does not differentiate this model rightly",
        f"at fault is custom function {function.__name__} in layer Around",
        "differentiation='differences'",
        "mend the derivative",
    ):
        assert part in message


@pytest.mark.parametrize("cls", [GGNLinearOperator, JacobianLinearOperator])
@pytest.mark.parametrize("function", WRONG_FORWARD, ids=lambda f: f.__name__)
def test_wrong_forward_mode(cls: Any, function: type[Function]) -> None:
    model = around(function, torch.float64)
    A, (said,) = loudly(cls, model)
    agree(A, truth(cls, around(cube, torch.float64)))
    assert A.differentiation == "backpack"
    culprit = f"at fault is custom function {function.__name__} in layer Around"
    assert said.startswith("torch.func")
    assert culprit in said
    with pytest.raises(WrongDerivativeError, match=culprit):
        build(cls, model, "func")


@of_all
def test_right_functions_are_not_suspected(cls: Any) -> None:
    for function in (CubeNew, WithoutForwardMode):
        A, said = loudly(cls, around(function, torch.float64))
        agree(A, truth(cls, around(cube, torch.float64)))
        if function is CubeNew:
            assert A.differentiation == "func"
            assert not said


def test_what_is_detached_is_not_suspected() -> None:
    """A constant to autograd on purpose, beside a function that is wrong."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = around(WrongForwardMode, torch.float64)

        def forward(self, X: Tensor) -> Tensor:
            out = self.inner(X)
            return out + 0 * out.detach().sum()

    _, (said,) = loudly(GGNLinearOperator, Beside())
    assert "at fault is custom function WrongForwardMode in layer 'inner'" in said


@pytest.mark.parametrize("position", [0, 1, 2])
def test_of_several_custom_functions_the_wrong_one_is_named(position: int) -> None:
    class Wrapped(nn.Module):
        def __init__(self, function: type[Function]) -> None:
            super().__init__()
            self.function = function

        def forward(self, X: Tensor) -> Any:
            return self.function.apply(X)

    functions = [OfData if i == position else CubeNew for i in range(3)]
    torch.manual_seed(0)
    layers = [layer for f in functions for layer in (nn.Linear(3, 3), Wrapped(f))]
    model = nn.Sequential(*layers, nn.Linear(3, 2)).double()
    where = rf"custom function OfData in layer '{2 * position + 1}' \(Wrapped\)"
    with pytest.raises(WrongDerivativeError, match=where):
        build(HessianLinearOperator, model, "backpack")


def test_wrong_function_inside_the_loss() -> None:
    def loss(f: Tensor, y: Tensor) -> Tensor:
        return OfData.apply(f - y).square().mean()

    model = around(torch.tanh, torch.float64)
    for cls, matrix in ((HessianLinearOperator, "hessian"), (GGNLinearOperator, "ggn")):
        right = lambda f, y: cube(f - y).square().mean()  # noqa: E731
        options: dict[str, Any] = {"loss": loss, "reduction": "mean"}
        A, (said,) = loudly(cls, model, **options)
        params = list(model.parameters())
        agree(A, getattr(dense, matrix)(model, right, params, X, Y))
        assert "custom function OfData" in said
        with pytest.raises(WrongDerivativeError, match="custom function OfData"):
            build(cls, model, "backpack", **options)


def test_several_columns_through_a_determinant() -> None:
    """Under vmap autograd takes another formula, which is NaN: pytorch#192521."""

    def det(h: Tensor) -> Tensor:
        return torch.linalg.det(h.view(-1, 2, 2))[:, None].expand(-1, 4)

    model = around(det, torch.float64)
    for cls in ALL:
        agree(build(cls, model), truth(cls, model))


# ------------------------------------------------------------------ what is known


@of_all
@pytest.mark.parametrize("way", ["func", "backpack", "differences"])
def test_what_an_operator_says(cls: Any, way: Way) -> None:
    A = build(cls, around(torch.tanh, torch.float64), way)
    proof = A.proof
    assert A.differentiation == proof.differentiation == way
    assert 0 < proof.error < 1e-6
    assert proof.doubt is None
    assert not proof.is_near_by
    assert f", {way} proven to {proof.error:.0e}>" in repr(A)
    assert (A.relative_error is None) == (way != "differences")


def test_what_a_proof_says() -> None:
    assert str(Proof("func", 3e-10)) == "proven to 3e-10"
    assert str(Proof("func", 3e-10, is_near_by=True)) == "proven near by to 3e-10"
    assert str(Proof("func", 3e-10, "of moths")) == "not proven: of moths"


@of_all
def test_unchecked(cls: Any) -> None:
    A = build(cls, around(torch.tanh, torch.float64), check_deterministic=False)
    assert A.proof.doubt == UNCHECKED
    assert A.proof.error is None
    assert "not proven: built with check_deterministic=False>" in repr(A)


@of_all
def test_stopped_gradients_are_not_proven(cls: Any) -> None:
    """A surrogate is meant: no differences tell whether it is differentiated rightly."""
    A, _ = loudly(cls, around(Through, torch.float64))
    assert A.proof.doubt == "the gradient is not that of the loss"
    assert "not proven: the gradient is not that of the loss" in repr(A)


@of_all
def test_a_kink_at_the_parameters_is_proven_near_by(cls: Any) -> None:
    model = around(torch.relu, torch.float64)
    nn.init.zeros_(model.first.bias)
    zeros = [(torch.zeros_like(X), Y)]
    A = build(cls, model, data=zeros)
    assert A.proof.is_near_by
    assert A.proof.doubt is None
    assert A.proof.error <= 1e-6
    assert "proven near by to" in repr(A)
    with pytest.raises(RuntimeError, match="is there a kink"):
        build(cls, model, "differences", data=zeros)


@pytest.mark.parametrize("function", WRONG_FORWARD)
def test_what_is_wrong_beside_a_kink_is_found_near_by(function: type[Function]) -> None:
    model = around(lambda h: function.apply(h) + h.relu(), torch.float64)
    nn.init.zeros_(model.first.bias)
    data = [(torch.cat([0 * X[:2], X[2:]]), Y)]
    A, (said,) = loudly(GGNLinearOperator, model, data=data)
    assert said.startswith("torch.func")
    assert A.differentiation == "backpack"
    assert A.proof.is_near_by


@pytest.mark.parametrize("function", [torch.relu, torch.tanh])
@of_all
def test_kinks_elsewhere_do_not_matter(cls: Any, function: Callable[..., Tensor]) -> None:
    model = around(function, torch.float64)
    A = build(cls, model)
    assert A.proof.error <= 1e-6
    assert not A.proof.is_near_by
    agree(A, truth(cls, model))


@of_all
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.1)]
)
def test_low_precision(cls: Any, dtype: torch.dtype, bound: float) -> None:
    data = [(X.to(dtype), Y.to(dtype))]
    A, said = loudly(cls, around(torch.tanh, dtype), data=data)
    assert A.differentiation == "func"
    assert not said
    assert 0 < A.proof.error <= bound
    assert A.proof.doubt is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_in_low_precision(dtype: torch.dtype) -> None:
    data = [(X.to(dtype), Y.to(dtype))]
    with pytest.raises(WrongDerivativeError, match="custom function OfData"):
        build(HessianLinearOperator, around(OfData, dtype), "backpack", data=data)


class Stubborn(nn.Linear):
    """Not to be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not to be copied")


def stubborn(function: Callable[[Tensor], Tensor]) -> tuple[Any, list[Tensor]]:
    """A closure in single precision that cannot be copied to double."""
    torch.manual_seed(0)
    first, last = Stubborn(3, 4), Stubborn(4, 2)
    params = [*first.parameters(), *last.parameters()]
    return lambda X: last(function(first(X))), params


@of_all
def test_closure_that_cannot_be_copied(cls: Any) -> None:
    """Smooth, it is compared in its own precision; across kinks it is not proven."""
    data = [(X.float(), Y.float())]
    model, params = stubborn(torch.tanh)
    A = build(cls, model, params=params, data=data)
    assert A.proof.doubt is None
    assert A.proof.error <= 2e-3
    model, params = stubborn(lambda h: (h.remainder(0.004) - 0.002).abs())
    A = build(cls, model, params=params, data=data)
    assert "no copy in double precision (not to be copied)" in A.proof.doubt
    assert "do not converge in float32" in A.proof.doubt
    assert "convert to float64" in repr(A)


# ------------------------------------------------------------------------ the cost


class Counting(Around):
    """Notes how many data each call sees."""

    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.seen: list[int] = []

    def forward(self, X: Tensor) -> Tensor:
        self.seen.append(len(X))
        return super().forward(X)


@of_all
def test_proven_on_a_few_data(cls: Any) -> None:
    """The gradient of a batch is computed as ever; all the rest sees a few data."""
    model = Counting().double()
    build(cls, model, data=[(X, Y), (X, Y)])
    whole = [n for n in model.seen if n == N]
    assert set(model.seen) == {N, FEW}
    assert len(whole) <= 5  # two passes over two batches, the first gradient twice
    assert len(model.seen) - len(whole) <= 40


def test_small_batches_are_proven_on_two_data() -> None:
    model = Counting().double()
    build(HessianLinearOperator, model, data=[(X[:5], Y[:5])])
    assert set(model.seen) == {5, 2}


def test_data_that_cannot_be_told_apart_are_proven_together() -> None:
    """Their number is that of the targets only; the loss refuses a part of them."""

    def loss(f: Tensor, y: Tensor) -> Tensor:
        if len(y) != N:
            raise ValueError("a full batch, please")
        return (f - y).square().sum()

    model = Counting().double()
    build(HessianLinearOperator, model, loss=loss, reduction="sum")
    assert model.seen.count(N) > 5


def test_memory_is_below_that_of_a_product_of_eight_columns() -> None:
    """Of 2.1 million parameters in single precision: 119 MB, of 276 (one column: 31)."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 1024), nn.Tanh(), nn.Linear(1024, 1024), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(1024, 10))
    data = [(torch.randn(256, 784), torch.randint(10, (256,)))]
    options: dict[str, Any] = {"data": data, "loss": nn.CrossEntropyLoss()}
    built = peak_bytes_of(lambda: build(HessianLinearOperator, model, **options))
    A = build(HessianLinearOperator, model, check_deterministic=False, **options)
    V = torch.ones(A.shape[1], 8)
    assert built <= peak_bytes_of(lambda: A @ V)


# ----------------------------------------------------------------- the user's errors


@of_all
@pytest.mark.parametrize("error", [OSError("mine"), ValueError("mine"), KeyError("mine")])
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 12])
def test_errors_of_the_model_come_through(cls: Any, error: Exception, at: int) -> None:
    """At whatever call they are raised, and no other way is taken."""
    calls = 0

    def fails(h: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise error
        return h.tanh()

    model = around(fails, torch.float64)

    def use() -> None:
        A = build(cls, model)
        for _ in range(at):
            A @ dense.normal(A.shape[1])

    with pytest.raises(type(error), match=str(error)):
        use()


@of_all
def test_a_runtime_error_of_the_model_is_what_is_raised(cls: Any) -> None:
    """It may be autograd's: every way is tried, then it comes through as it is."""

    def fails(h: Tensor) -> Tensor:
        raise RuntimeError("the lamp is broken")

    model = around(fails, torch.float64)
    for way in ("auto", "func", "backpack", "differences"):
        with pytest.raises(RuntimeError, match=r"^the lamp is broken$"):
            build(cls, model, way)


def test_the_truth_of_this_file() -> None:
    """Differences of the gradient, computed by hand, confirm the double backward."""
    model = around(OfData, torch.float64)
    params = list(model.parameters())

    def gradient() -> Any:
        return torch.autograd.grad(nn.MSELoss()(model(X), Y), params)

    right = truth(HessianLinearOperator, around(cube, torch.float64))
    assert dense.relative_error(differences(gradient, params), right) <= 1e-7
    A = build(HessianLinearOperator, model, "differences")
    assert isinstance(A.ways[0], Differences)
    agree(A, right)
