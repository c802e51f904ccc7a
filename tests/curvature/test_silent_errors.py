"""What was once wrong in silence, where no other file tests it.

Custom functions (an intermediate on ``ctx``, ``once_differentiable``, NumPy) and ``det``
with two columns are in ``test_proof.py``; losses that read parameters in
``test_reading.py``; inputs that require a gradient in ``test_unpacking.py``; predictions
cut off their parameters in ``test_unused.py``; replaced ``forward`` of a loss in
``test_altered_losses.py``; names and sets of parameters in ``test_parameters.py``; scales
that over- or underflow in ``test_scales.py`` of solvers, spectra and estimators; flipped
bits in ``test_checksum.py``; errors at each call of a model in ``test_proof.py``.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils import parametrizations

from curvop import (
    EFLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianDiagonalLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
)
from curvop.functional import exact_hvp, gauss_newton_product, hessian_row_sum, model_hvp
from tests.cases.problem import seeded
from tests.comparing import split
from tests.sweep.custom import OfData, Once, WithNumPy, WithoutGraph

from . import dense
from .doors import differences

N = 6
X, Y = dense.normal(N, 8, seed=1), dense.normal(N, 2, seed=2)


BUILD: dict[str, Callable[[Any, Any, Any], Any]] = {
    "Hessian": lambda m, p, d: HessianLinearOperator(m, nn.MSELoss(), p, d),
    "GGN": lambda m, p, d: GGNLinearOperator(m, nn.MSELoss(), p, d),
    "EF": lambda m, p, d: EFLinearOperator(m, nn.MSELoss(), p, d),
    "Jacobian": JacobianLinearOperator,
}


def gradient(model: Any, params: Any) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(F.mse_loss(model(X), Y), params)


def hessian(model: nn.Module) -> Tensor:
    """By differences of the gradient: its double backward is what is wrong."""
    params = list(model.parameters())
    return differences(gradient(model, params), params)


def agree(got: Tensor, expected: Tensor, tolerance: float = 1e-7) -> None:
    """To within the error of the differences."""
    assert dense.relative_error(got, expected) <= tolerance


class Activated(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 3), nn.Linear(3, 2)
        self.activation = activation

    def forward(self, X: Tensor) -> Any:
        return self.last(self.activation(self.first(X)))


# --------------------------------------------------------------------- weight norm

NORMS = {
    "parametrised": parametrizations.weight_norm,
    "of a hook": nn.utils.weight_norm,
}
LAYERS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": lambda: [nn.Linear(8, 4), nn.Tanh()],
    "convolution": lambda: [
        nn.Conv1d(1, 2, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6, 4),
    ],
}


def normed(kind: str, layer: str, dim: int | None) -> nn.Module:
    """``weight_norm`` of the first layer."""

    def make() -> nn.Module:
        first, *rest = LAYERS[layer]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old form is deprecated
            first = NORMS[kind](first, dim=dim)
        shape = (1, 8) if layer == "convolution" else (8,)
        return nn.Sequential(nn.Unflatten(1, shape), first, *rest, nn.Linear(4, 2))

    return seeded(make, torch.float64)


every_norm = pytest.mark.parametrize(
    ("kind", "layer", "dim"),
    [(k, layer, dim) for k in NORMS for layer in LAYERS for dim in (0, 1, None)],
)


@every_norm
def test_weight_norm(kind: str, layer: str, dim: int | None) -> None:
    model = normed(kind, layer, dim)
    H, params = hessian(model), list(model.parameters())
    args = nn.MSELoss(), params, [(X, Y)]
    for form in (model, lambda X: model(X)):
        for way in ("auto", "backpack"):
            A = HessianLinearOperator(form, *args, differentiation=way)
            assert A.differentiation != "differences"  # exact, without a warning
            agree(A.to_dense(), H)
            agree(A @ H[0], H @ H[0])
    agree(HessianLinearOperator(model, *args).linearize().to_dense(), H)
    agree(HessianDiagonalLinearOperator(model, *args).to_dense(), H.diag().diag())
    G = dense.ggn(model, *args[:2], X, Y)
    agree(GGNLinearOperator(model, *args).to_dense(), G)


@every_norm
def test_weight_norm_in_functional_calls(kind: str, layer: str, dim: int | None) -> None:
    model = normed(kind, layer, dim)
    H, params = hessian(model), list(model.parameters())
    flat = dense.normal(len(H), seed=3)
    v = split(flat, tuple(p.shape for p in params), "right")

    def loss() -> Tensor:
        return F.mse_loss(model(X), Y)

    agree(dense.flat(exact_hvp(loss, params, v)), H @ flat)
    agree(dense.flat(model_hvp(model, F.mse_loss, X, Y, v)), H @ flat)
    agree(hessian_row_sum(loss, params), H.sum(1))
    G = dense.ggn(model, nn.MSELoss(), params, X, Y)
    agree(dense.flat(gauss_newton_product(model, F.mse_loss, X, Y, v)), G @ flat)


# ------------------------------------------------------------------------ diagonals


@pytest.mark.parametrize("function", [OfData, Once, WithNumPy, WithoutGraph])
@pytest.mark.filterwarnings("ignore:torch.func does not support:UserWarning")
def test_diagonals_through_custom_functions(function: type[Function]) -> None:
    """Double backward is one of their short cuts."""
    model, right = (
        seeded(lambda f=f: Activated(f), torch.float64)
        for f in (function.apply, lambda h: h**3)
    )
    params = list(right.parameters())
    for cls, matrix in (
        (HessianDiagonalLinearOperator, dense.hessian),
        (GGNDiagonalLinearOperator, dense.ggn),
    ):
        D = cls(model, nn.MSELoss(), list(model.parameters()), [(X, Y)])
        B = matrix(right, nn.MSELoss(), params, X, Y)
        agree(D.to_dense(), B.diag().diag(), 1e-8)


# ------------------------------------------------------------------- finite, not NaN


def products(x: Tensor) -> Tensor:
    """Of each row, factor by factor."""
    return functools.reduce(torch.mul, x.unbind(1))


AT_ZERO: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "prod": (
        lambda x: x.prod(1, keepdim=True),
        lambda x: products(x)[:, None],
    ),
    "cumprod": (
        lambda x: x.cumprod(1),
        lambda x: torch.stack([products(x[:, :k]) for k in range(1, 5)], 1),
    ),
    "sinc": (
        torch.sinc,
        lambda x: 1 - (torch.pi * x) ** 2 / 6 + (torch.pi * x) ** 4 / 120,
    ),
}


class Factors(nn.Module):
    """A function of parameters of which some are exactly zero."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.factors = nn.Parameter(torch.tensor([[0.0, 0.5, 0.0, -0.3]]).double())
        self.last = nn.Parameter(dense.normal(4, 2, seed=5))

    def forward(self, X: Tensor) -> Tensor:
        h = self.function(self.factors * X[:, :1].sign())
        return h.expand(-1, 4) @ self.last


@pytest.mark.parametrize("name", AT_ZERO)
@pytest.mark.parametrize("cls", [HessianLinearOperator, GGNLinearOperator])
@pytest.mark.parametrize("K", [None, 1, 3])
def test_zero_factors(cls: Any, name: str, K: int | None) -> None:
    function, composed = AT_ZERO[name]
    if name == "sinc":  # its expansion is right at zero only
        function, composed = (
            lambda x, f=f: f(x[:, :3:2]).repeat(1, 2) + x for f in AT_ZERO[name]
        )
    model, smooth = Factors(function), Factors(composed)
    params = list(smooth.parameters())
    matrix = dense.hessian if cls is HessianLinearOperator else dense.ggn
    B = matrix(smooth, nn.MSELoss(), params, X, Y)
    A = cls(model, nn.MSELoss(), list(model.parameters()), [(X, Y)])
    V = dense.normal(len(B), seed=3) if K is None else dense.normal(len(B), K, seed=3)
    agree(A @ V, B @ V, 1e-8)


# -------------------------------------------------------------------------- threads


class Polling(threading.Thread):
    """Looks at a module, as others may, until it is told to stop."""

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__()
        self.look, self.seen, self.stopped = look, set[object](), threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            self.seen.add(self.look())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", ["Hessian", "GGN", "EF", "Jacobian"])
@pytest.mark.parametrize("form", ["module", "closure"])
def test_four_threads(name: str, batch_norm: bool, form: str) -> None:
    """Products are right, and the module is the user's at every moment."""

    def make() -> nn.Module:
        norm = [nn.BatchNorm1d(4)] if batch_norm else []
        return nn.Sequential(nn.Linear(8, 4), *norm, nn.Tanh(), nn.Linear(4, 2))

    model = seeded(make, torch.float64)
    optimiser = torch.optim.SGD(model.parameters())
    params = list(model.parameters())
    flash = torch.backends.cuda.flash_sdp_enabled()
    A = BUILD[name](model if form == "module" else lambda X: model(X), params, [(X, Y)])
    V = dense.normal(A.shape[1], 40, seed=3)
    expected = torch.stack([A @ v for v in V.T], 1)
    got = torch.full_like(expected, torch.nan)

    def work(start: int) -> None:
        for k in range(start, 40, 4):
            got[:, k] = A @ V[:, k]

    def look() -> object:
        return tuple((id(p), type(p), p.requires_grad) for p in model.parameters())

    found = look()
    polling = Polling(look)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in (polling, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    polling.stopped.set()
    polling.join()
    agree(got, expected, 1e-12)
    assert polling.seen == {found}
    held = [p for group in optimiser.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(held, model.parameters(), strict=True))
    assert all(isinstance(p, nn.Parameter) for p in held)
    assert torch.backends.cuda.flash_sdp_enabled() == flash


# ----------------------------------------------------------------- the user's errors


class Failing:
    """Data, or an activation, that fails from some time on."""

    def __init__(self, error: Exception) -> None:
        self.error, self.fails = error, False

    def __iter__(self) -> Iterator[Any]:
        yield X[:3], Y[:3]
        if self.fails:
            raise self.error
        yield X[3:], Y[3:]

    def __call__(self, h: Tensor) -> Tensor:
        if self.fails:
            raise self.error
        return h.tanh()


@pytest.mark.parametrize("error", [OSError("unplugged"), ValueError("unplugged")])
@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("where", ["model", "data"])
@pytest.mark.parametrize("when", ["construction", "product", "linearize"])
def test_errors_come_through(name: str, where: str, when: str, error: Exception) -> None:
    """No other way is tried, no other form taken, and there is no warning."""
    failing = Failing(error)
    model = seeded(
        lambda: Activated(failing if where == "model" else torch.tanh), torch.float64
    )
    data = failing if where == "data" else [(X, Y)]
    failing.fails = when == "construction"

    def use() -> None:
        A = BUILD[name](model, list(model.parameters()), data)
        failing.fails = True
        if when == "product":
            A @ dense.normal(A.shape[1])
        else:
            A.linearize()

    with pytest.raises(type(error), match=r"^unplugged$") as info:
        use()
    assert info.value is error


# ------------------------------------------------------------ found by a stranger


class Part(nn.Module):
    """A network, and beside it a small part with a wrong second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.w = nn.Parameter(torch.tensor([0.3, -0.8, 0.5]).double())

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.net(x) + 1e-3 * OfData.apply(x * self.w).sum(1, keepdim=True)


def small_problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    X, Y = torch.randn(12, 3, generator=g), torch.randn(12, 2, generator=g)
    return X.double(), Y.double()


def test_small_block_is_compared_by_itself() -> None:
    torch.manual_seed(0)
    model = Part()
    with pytest.warns(UserWarning, match="custom function OfData"):
        H = HessianLinearOperator(model, nn.MSELoss(), model, [small_problem()])
    assert H.differentiation == "differences"


class Stopped(nn.Module):
    """Divides by a norm that counts as constant."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z / z.detach().norm(dim=1, keepdim=True)


@pytest.mark.parametrize("seed", range(20))
def test_stopped_gradients_are_not_proven(seed: int) -> None:
    torch.manual_seed(seed)
    model = Stopped()
    for cls in (HessianLinearOperator, GGNLinearOperator):
        A = cls(model, nn.MSELoss(), model, [small_problem(seed)])
        assert A.proof.doubt is not None


class Hidden:
    """A loss with the model as an attribute of its class."""

    model: nn.Module

    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        decay = torch.stack([p.square().sum() for p in self.model.parameters()]).sum()
        return (f - y).square().mean() + 0.1 * decay


@pytest.mark.parametrize("cls", [HessianLinearOperator, GGNLinearOperator])
def test_hidden_references_of_a_loss_are_refused(cls: Any) -> None:
    Hidden.model = model = nn.Linear(3, 2).double()
    with pytest.raises(ValueError, match="Hidden depends on parameters of the model"):
        cls(model, Hidden(), model, [small_problem()], reduction="mean")


class Single(nn.Module):
    """Asks for single precision inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).float().tanh().double()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cls", [HessianLinearOperator, GGNLinearOperator])
def test_single_precision_inside_is_proven(cls: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = Single()
    A = cls(model, nn.MSELoss(), model, [small_problem(seed)])
    assert A.differentiation == "func"
    assert A.proof.doubt is None


def test_parts_of_a_prediction_that_share_a_gradient() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.net(x)
            return z, z.sin()

    def loss(f: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return (f[0] + f[1] - y).cosh().mean()

    model = Two()
    G = GGNLinearOperator(model, loss, model, [small_problem()], reduction="mean")
    assert G.proof.doubt is None


def test_max_norm_of_an_embedding_leaves_the_weight() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.5), nn.Linear(3, 2)).double()
    before = model[0].weight.detach().clone()
    data = [(torch.tensor([0, 3, 3, 4]), torch.zeros(4, 2).double())]
    H = HessianLinearOperator(model, nn.MSELoss(), model, data)
    H @ torch.ones(H.shape[1]).double()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("K", [7, 8, 9])
def test_recordings_that_cannot_be_widened(K: int) -> None:
    class Decomposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x).view(-1, 2, 2)
            return torch.linalg.eigvalsh(z + z.mT)

    model = Decomposed()
    G = GGNLinearOperator(model, nn.MSELoss(), model, [small_problem()])
    V = torch.randn(G.shape[1], K, generator=torch.Generator().manual_seed(1)).double()
    L = G.linearize()
    assert (L @ V - G @ V).norm() <= 1e-10 * (G @ V).norm()


def test_parameters_without_entries() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2).double()
            self.none = nn.Parameter(torch.zeros(0, 3).double())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x) + (x @ self.none.T).sum(1, keepdim=True)
            return out

    model, data = Empty(), [small_problem()]
    H = HessianLinearOperator(model, nn.MSELoss(), model, data)
    D = HessianDiagonalLinearOperator(model, nn.MSELoss(), model, data)
    dense = H.to_dense()
    assert torch.allclose(H.linearize().to_dense(), dense)
    assert torch.allclose(D.to_dense(), dense.diag().diag())
