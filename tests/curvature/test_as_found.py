"""The user's model, gradients, buffers, modes, hooks and settings are left as found."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)

from . import dense

N, C = 6, 2
X, Y = dense.normal(N, 3, seed=1), dense.normal(N, C, seed=2)
CURVATURES = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
JACOBIANS = (JacobianLinearOperator, TransposedJacobianLinearOperator)
of_all = pytest.mark.parametrize("cls", CURVATURES + JACOBIANS)
both_ways = pytest.mark.parametrize("way", ["func", "backpack"])


class Counting(nn.Module):
    """A model that writes all it has: running statistics, counters, histories."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.4).eval()
        self.leave = nn.Linear(4, C)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.register_buffer("missing", None)
        self.fail = False

    def forward(self, X: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.norm(self.enter(X)).tanh()
        self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        if self.fail:
            raise ArithmeticError("in the middle of forward")
        out: Tensor = self.leave(self.dropout(hidden))
        return out


def network() -> Counting:
    """A model in a state that is easily disturbed."""
    torch.manual_seed(0)
    net = Counting().double()
    net.enter.weight.requires_grad_(False)
    net.leave.weight.grad = torch.full_like(net.leave.weight, 3.0)
    net.norm.eps = 1e-3
    net.unused.eval()
    net.leave.register_forward_hook(lambda module, args, out: out * 1.5)
    net.enter.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    net.leave.bias.register_hook(lambda grad: grad)
    return net


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


def fingerprint(net: nn.Module) -> dict[str, Any]:
    """All that a user could find changed, tensors by identity, version and bits."""
    state: dict[str, Any] = {}
    tensors = [*net.named_parameters(), *net.named_buffers()]
    for name, t in tensors:
        state[name] = (id(t), t.detach().numpy().tobytes(), t.requires_grad, t.is_leaf)
        hooks = t._backward_hooks
        state[f"hooks of {name}"] = None if hooks is None else list(hooks.items())
        grad = t.grad
        state[f"gradient of {name}"] = (
            None if grad is None else (id(grad), grad.numpy().tobytes(), grad._version)
        )
    for name, module in net.named_modules():
        state[f"mode of {name}"] = module.training
        state[f"hooks in {name}"] = [list(getattr(module, kind)) for kind in HOOKS]
        state[f"keys of {name}"] = (
            sorted(module.__dict__),
            list(module._parameters),
            list(module._buffers),
            list(module._modules),
        )
    return state


def settings() -> dict[str, Any]:
    """Global settings of torch, and its generator."""
    return {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().numpy().tobytes(),
        "functions": torch.overrides._get_current_function_mode_stack(),
        "hooks": list(nn.modules.module._global_forward_hooks),
    }


# --------------------------------------------------------- how a model is handed over


class Holder:
    """An object that is called, and one with a method."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, X: Tensor) -> Tensor:
        out: Tensor = self.net(X)
        return out

    method = __call__


def apply(net: nn.Module, X: Tensor) -> Tensor:
    out: Tensor = net(X)
    return out


def nested_closure(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def inner(X: Tensor) -> Tensor:
        return apply(net, X)

    return lambda X: inner(X)


def functional(net: nn.Module) -> Callable[..., Any]:
    return lambda params, X: torch.func.functional_call(net, params, (X,))


WRAPPINGS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda net: net,
    "lambda": lambda net: lambda X: net(X),
    "nested closure": nested_closure,
    "partial": lambda net: functools.partial(apply, net),
    "partial of a closure": lambda net: functools.partial(lambda X, c: c * net(X), c=2),
    "partial of a module": functools.partial,
    "bound method": lambda net: net.forward,
    "callable object": Holder,
    "method of an object": lambda net: Holder(net).method,
    "list in a closure": lambda net: (lambda nets: lambda X: nets[0](X))([net]),
    "functional": functional,
}
wrapped = pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)


def build(cls: Any, net: nn.Module, data: Any = None, **options: Any) -> Any:
    """An operator on all parameters that the model uses."""
    used = {k: p for k, p in net.named_parameters() if not k.startswith("unused")}
    wrap = options.pop("wrap", lambda net: net)
    params: Any = used if wrap is functional else list(used.values())
    loss = () if cls in JACOBIANS else (options.pop("loss", nn.MSELoss()),)
    data = [(X, Y)] if data is None else data
    return cls(wrap(net), *loss, params, data, **options)


def use(A: Any) -> None:
    """All kinds of products."""
    one = torch.ones(A.shape[1], dtype=torch.float64)
    A @ one
    A @ torch.eye(A.shape[1], dtype=torch.float64)[:, :3]
    A.T @ torch.ones(A.shape[0], dtype=torch.float64)
    A.to_scipy() @ one.numpy()


@of_all
@wrapped
def test_after_construction_and_products(cls: Any, wrap: Any) -> None:
    net = network()
    before, around = fingerprint(net), settings()
    A = build(cls, net, wrap=wrap)
    assert fingerprint(net) == before
    use(A)
    assert fingerprint(net) == before
    assert settings() == around


@of_all
@both_ways
def test_each_way_to_differentiate(cls: Any, way: str) -> None:
    net = network().eval()
    before, around = fingerprint(net), settings()
    use(build(cls, net, differentiation=way))
    assert fingerprint(net) == before
    assert settings() == around


@pytest.mark.parametrize("cls", CURVATURES)
@pytest.mark.parametrize("wrap", [WRAPPINGS["module"], WRAPPINGS["lambda"]])
def test_blocks(cls: Any, wrap: Any) -> None:
    net = network()
    before = fingerprint(net)
    use(build(cls, net, wrap=wrap, block_sizes=[2, 3, 1]))
    assert fingerprint(net) == before


@pytest.mark.filterwarnings("ignore:The product cannot be recorded:UserWarning")
@pytest.mark.parametrize("cls", CURVATURES)
def test_linearized(cls: Any) -> None:
    net = network()
    before, around = fingerprint(net), settings()
    A = build(cls, net).linearize()
    A @ torch.ones(A.shape[1], dtype=torch.float64)
    assert fingerprint(net) == before
    assert settings() == around


def test_the_fingerprint_sees_a_forward_pass() -> None:
    """What is tested here can fail."""
    net = network()
    before, around = fingerprint(net), settings()
    net(X)
    torch.rand(1)
    changed = {key for key, value in fingerprint(net).items() if value != before[key]}
    assert {"calls", "mean", "norm.running_mean", "norm.running_var"} <= changed
    assert settings() != around


# --------------------------------------------------------------------- exceptions


class Interrupted:
    """Data that fails after one batch, at a given pass."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error = error
        self.passes_left = at

    def __iter__(self) -> Iterator[Any]:
        self.passes_left -= 1
        yield X[:3], Y[:3]
        if self.passes_left < 0:
            raise self.error
        yield X[3:], Y[3:]


ERRORS = (OSError("broken"), KeyboardInterrupt(), SystemExit(3))
with_errors = pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
some_wrappings = pytest.mark.parametrize(
    "wrap", [WRAPPINGS[k] for k in ("module", "lambda", "functional")]
)


@of_all
@with_errors
@some_wrappings
def test_error_in_the_data(cls: Any, wrap: Any, error: BaseException) -> None:
    net = network().eval()
    before, around = fingerprint(net), settings()
    with pytest.raises(type(error)):
        build(cls, net, Interrupted(error, at=1), wrap=wrap)
    assert fingerprint(net) == before
    A = build(cls, net, Interrupted(error, at=2), wrap=wrap)
    with pytest.raises(type(error)):
        use(A)
    assert fingerprint(net) == before
    assert settings() == around


@of_all
@some_wrappings
def test_error_in_forward(cls: Any, wrap: Any) -> None:
    net = network()
    A = build(cls, net, wrap=wrap)
    before, around = fingerprint(net), settings()
    net.fail = True
    with pytest.raises(ArithmeticError, match="in the middle of forward"):
        use(A)
    with pytest.raises(ArithmeticError, match="in the middle of forward"):
        build(cls, net, wrap=wrap)
    assert fingerprint(net) == before
    assert settings() == around


@of_all
@with_errors
@some_wrappings
@pytest.mark.parametrize("at", [1, 3])
def test_error_in_a_hook(cls: Any, wrap: Any, error: BaseException, at: int) -> None:
    """In the middle of forward: of the first product, or later."""
    net = network()
    calls = 0

    def fail(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error

    net.leave.register_forward_pre_hook(fail)
    before, around = fingerprint(net), settings()
    with pytest.raises(type(error)):  # no other way to differentiate is tried
        use(build(cls, net, wrap=wrap))
    assert fingerprint(net) == before
    assert settings() == around


@pytest.mark.parametrize("cls", CURVATURES)
@with_errors
@some_wrappings
def test_error_in_the_loss(cls: Any, wrap: Any, error: BaseException) -> None:
    def loss(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        raise error

    net = network()
    before, around = fingerprint(net), settings()
    for check in (True, False):
        with pytest.raises(type(error)):
            use(build(cls, net, wrap=wrap, loss=loss, check_deterministic=check))
    assert fingerprint(net) == before
    assert settings() == around


# ------------------------------------------------------------- surrounding contexts


@of_all
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@both_ways
def test_without_gradients(cls: Any, context: Any, way: str) -> None:
    net = network().eval()
    expected = build(cls, net).to_dense()
    with context():
        A = build(cls, net, differentiation=way)
        before = settings()
        dense_inside = A.to_dense()
        assert settings() == before
    assert dense.relative_error(dense_inside, expected) <= 1e-8
    assert dense.relative_error(A.to_dense(), expected) <= 1e-8
    with context():
        assert dense.relative_error(A.to_dense(), expected) <= 1e-8


@of_all
@both_ways
def test_all_that_is_made_in_inference_mode(cls: Any, way: str) -> None:
    """Data, parameters and vectors, too."""
    expected = build(cls, network().eval()).to_dense()
    with torch.inference_mode():
        net = network().eval()
        A = build(cls, net, [(X.clone(), Y.clone())], differentiation=way)
        assert dense.relative_error(A.to_dense(), expected) <= 1e-8


@of_all
def test_results_carry_no_graph(cls: Any) -> None:
    A = build(cls, network().eval())
    x = torch.ones(A.shape[1], dtype=torch.float64, requires_grad=True)
    for way in ("func", "backpack"):
        product = build(cls, network().eval(), differentiation=way) @ x
        assert not product.requires_grad
    assert x.grad is None


# ---------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Each of torch's attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encode = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, dropout=0.0)
        self.leave = nn.Linear(4, C)

    def forward(self, X: Tensor) -> Tensor:
        h = self.enter(X.reshape(-1, 2, 3))
        h = h + self.attend(h, h, h, need_weights=False)[0]
        h = h + F.scaled_dot_product_attention(h, h, h)
        out: Tensor = self.leave(self.encode(h)).flatten(0, 1)
        return out


@of_all
@both_ways
@pytest.mark.parametrize("enabled", [True, False])
def test_attention_settings(cls: Any, way: str, enabled: bool) -> None:
    torch.manual_seed(0)
    net = Attention().double().eval()
    params = list(net.parameters())[:4]
    loss = () if cls in JACOBIANS else (nn.MSELoss(),)
    torch.backends.mha.set_fastpath_enabled(enabled)
    torch.backends.cuda.enable_flash_sdp(enabled)
    try:
        before = settings()
        A = cls(net, *loss, params, [(X, Y)], differentiation=way)
        A @ torch.ones(A.shape[1], dtype=torch.float64)
        assert settings() == before
        with pytest.raises(ValueError, match="Expected shape"):
            A @ torch.ones(3, dtype=torch.float64)
        assert settings() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.backends.cuda.enable_flash_sdp(True)


def test_shared_submodules_and_extra_state() -> None:
    """A module that occurs twice, and in an ordered dict."""
    shared = nn.BatchNorm1d(3)
    parts = OrderedDict(first=shared, again=shared, leave=nn.Linear(3, C))
    net = nn.Sequential(parts).double()
    before = fingerprint(net)
    use(HessianLinearOperator(net, nn.MSELoss(), list(net.parameters()), [(X, Y)]))
    assert fingerprint(net) == before
