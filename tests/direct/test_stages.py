"""Every kind of stage, anywhere in the chain: structured, dense, frozen, reshaping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import ChainHessianLinearOperator
from curvop.direct.newton_system import _ELEMENTWISE
from tests.cases.problem import Problem
from tests.comparing import TOLERANCE, error, random
from tests.direct.chains import chain, dense, problem, residual

Modules = Callable[[], Sequence[nn.Module]]


def frozen(module: nn.Module, *names: str) -> nn.Module:
    """The module with some of its parameters as constants."""
    for name, p in module.named_parameters():
        p.requires_grad_(name not in names)
    return module


class Opaque(nn.Module):
    """The same module, not recognised: differentiated into dense matrices."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, z: Tensor) -> Tensor:
        return self.module(z)


class Residual(Opaque):
    def forward(self, z: Tensor) -> Tensor:
        return z + self.module(z)


CHAINS: dict[str, tuple[Modules, tuple[int, ...]]] = {
    "one linear": (lambda: [nn.Linear(3, 4)], (5, 3)),
    "one linear, one datum": (lambda: [nn.Linear(5, 4)], (1, 5)),
    "starts with an activation": (
        lambda: [nn.Softplus(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)],
        (2, 3),
    ),
    "ends with an activation": (
        lambda: [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.GELU()],
        (2, 3),
    ),
    "two linear in a row": (lambda: [nn.Linear(3, 4), nn.Linear(4, 2)], (3, 3)),
    "convolutions": (
        lambda: [
            nn.Conv2d(1, 2, 3),
            nn.Tanh(),
            nn.Conv2d(2, 2, 2, stride=2),
            nn.Flatten(),
            nn.Linear(8, 3),
        ],
        (2, 1, 6, 6),
    ),
    "layer norm": (
        lambda: [nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)],
        (3, 3),
    ),
    "group norm": (
        lambda: [nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 2)],
        (3, 3),
    ),
    "batch norm on batch statistics": (
        lambda: [
            nn.Linear(3, 4),
            nn.BatchNorm1d(4, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(4, 2),
        ],
        (5, 3),
    ),
    "batch norm on running statistics": (
        lambda: [nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.SiLU(), nn.Linear(4, 2)],
        (3, 3),
    ),
    "softmax": (
        lambda: [nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 3), nn.Softmax(1)],
        (3, 3),
    ),
    "pooling": (
        lambda: [nn.Conv1d(2, 3, 2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 2)],
        (2, 2, 5),
    ),
    "learned activation": (
        lambda: [nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)],
        (3, 3),
    ),
    "residual": (
        lambda: [
            nn.Linear(3, 3),
            Residual(nn.Sequential(nn.Tanh(), nn.Linear(3, 3))),
            nn.Linear(3, 2),
        ],
        (3, 3),
    ),
    "nested": (
        lambda: [
            nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh())),
            nn.Linear(4, 2),
        ],
        (3, 3),
    ),
    "in place": (
        lambda: [nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)],
        (3, 3),
    ),
    "the same activation twice": (
        lambda: [
            nn.Linear(3, 4),
            *([tanh := nn.Tanh()]),
            nn.Linear(4, 4),
            tanh,
            nn.Linear(4, 2),
        ],
        (3, 3),
    ),
    "frozen first layer": (
        lambda: [
            frozen(nn.Linear(3, 4), "weight", "bias"),
            nn.Tanh(),
            nn.Linear(4, 4),
            nn.Tanh(),
            nn.Linear(4, 2),
        ],
        (2, 3),
    ),
    "frozen middle layer": (
        lambda: [
            nn.Linear(3, 4),
            nn.Tanh(),
            frozen(nn.Linear(4, 4), "weight", "bias"),
            nn.Tanh(),
            nn.Linear(4, 2),
        ],
        (2, 3),
    ),
    "frozen weights": (
        lambda: [
            frozen(nn.Linear(3, 4), "weight"),
            nn.Tanh(),
            frozen(nn.Linear(4, 4), "weight"),
            nn.Tanh(),
            nn.Linear(4, 2),
        ],
        (2, 3),
    ),
    "frozen biases": (
        lambda: [
            frozen(nn.Linear(3, 4), "bias"),
            nn.Tanh(),
            frozen(nn.Linear(4, 4), "bias"),
            nn.Tanh(),
            nn.Linear(4, 2),
        ],
        (2, 3),
    ),
    "sequences": (
        lambda: [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)],
        (2, 2, 3),  # a linear layer acts on the last axis
    ),
    "no batch axis": (lambda: [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)], (3,)),
    "reshapes": (
        lambda: [
            nn.Linear(4, 6),
            nn.Unflatten(1, (2, 3)),
            nn.Identity(),
            nn.Linear(3, 2),
            nn.Flatten(),
        ],
        (2, 4),
    ),
    "dropout in evaluation": (
        lambda: [nn.Linear(3, 4), nn.Dropout(0.5).eval(), nn.Linear(4, 2)],
        (3, 3),
    ),
    "normalised weights": (
        lambda: [
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
            nn.Tanh(),
            nn.Linear(4, 2),
        ],
        (3, 3),
    ),
}


def agrees(p: Problem) -> None:
    """Hessian and Gauss-Newton matrix, and their inverses, against the dense ones."""
    for curvature in ("hessian", "ggn"):
        A, H = chain(p, curvature=curvature), dense(p, curvature)
        assert error(A.to_dense(), H) <= TOLERANCE
        b = random(len(H), 2)
        eigenvalues = torch.linalg.eigvalsh(H)
        for damping in (0.3, 1e-4):
            inverse = A.inverse(damping)
            assert residual(H, damping, inverse @ b, b) <= 1e-9
            assert inverse.num_negative() == int((eigenvalues < -damping).sum())
            expected = float((eigenvalues + damping).abs().log().sum())
            assert abs(inverse.logabsdet() - expected) <= 1e-9 * max(1, abs(expected))


@pytest.mark.parametrize("name", CHAINS)
def test_stages(name: str) -> None:
    modules, (n, *shape) = CHAINS[name]
    agrees(problem(modules, n, *shape))


def test_integers_into_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2), nn.Tanh()).double()
    X, y = torch.tensor([1, 3, 3]), random(3, 2)
    agrees(Problem(model, dict(model.named_parameters()), nn.MSELoss(), X, y))


MODULES = sorted(_ELEMENTWISE, key=lambda kind: kind.__name__)
ARGUMENTS = {nn.Threshold: (0.1, 0.2), nn.Unflatten: (1, (4, 1)), nn.Flatten: (1,)}


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_elementwise_equals_dense(kind: type[nn.Module]) -> None:
    activation = kind(*ARGUMENTS.get(kind, ())).eval()
    first, last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    tail = [nn.Flatten(), last]
    equal(
        nn.Sequential(first, activation, *tail),
        nn.Sequential(first, Opaque(activation), *tail),
    )


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_dense(bias: bool, n: int) -> None:
    layers = [nn.Linear(3, 3, bias=bias).double() for _ in range(4)]
    between = [nn.Tanh(), nn.Tanh(), nn.Tanh(), nn.Identity()]
    pairs = list(zip(layers, between, strict=True))
    equal(
        nn.Sequential(*(m for layer, act in pairs for m in (layer, act))),
        nn.Sequential(*(m for layer, act in pairs for m in (Opaque(layer), act))),
        n,
    )


def test_hooks_are_heeded() -> None:
    """A linear layer with a hook is not linear any more."""
    layer, last = nn.Linear(3, 3).double(), nn.Linear(3, 2).double()
    layer.register_forward_hook(lambda module, args, out: out.sin())
    p = problem(lambda: [layer, last], 3, 3)
    assert error(chain(p).to_dense(), dense(p)) <= TOLERANCE


def equal(a: nn.Module, b: nn.Module, n: int = 3) -> None:
    """Both chains have the same matrix and inverse."""
    X = random(n, 3)
    y = random(*a(X).shape, seed=1)
    A, B = (ChainHessianLinearOperator(m, nn.HuberLoss(), X, y) for m in (a, b))
    assert error(A.to_dense(), B.to_dense()) <= 1e-12
    for damping in (0.5, 1e-4):
        one, other = A.inverse(damping), B.inverse(damping)
        assert error(one.to_dense(), other.to_dense()) <= 1e-9
        assert one.num_negative() == other.num_negative()


def smooth(prediction: Tensor, y: Tensor) -> Tensor:
    """A callable in which the data interact."""
    return (prediction - y).square().sum().sqrt() + prediction.mean(0).cos().sum()


WEIGHT = torch.tensor([0.5, 1.0, 2.0]).double()
CLASSES = torch.tensor([0, 2, 1, -100])
PROBABILITIES = random(4, 3).softmax(1)
BITS = (random(4, 3) > 0).double()
TERMINALS: tuple[tuple[Callable[..., Tensor], Tensor], ...] = (
    (nn.MSELoss(reduction="sum"), random(4, 3, seed=5)),
    (nn.CrossEntropyLoss(), CLASSES.clamp(min=0)),
    (nn.CrossEntropyLoss(WEIGHT, ignore_index=-100, label_smoothing=0.1), CLASSES),
    (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), PROBABILITIES),
    (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), BITS),
    (nn.L1Loss(), random(4, 3, seed=5)),
    (nn.SmoothL1Loss(beta=0.5), random(4, 3, seed=5)),
    (nn.functional.huber_loss, random(4, 3, seed=5)),
    (smooth, random(4, 3, seed=5)),
)


def name_of(loss: Any) -> str:
    """The same in every process."""
    return getattr(loss, "__name__", str(loss))


@pytest.mark.parametrize("terminal", TERMINALS, ids=lambda t: name_of(t[0]))
def test_losses(terminal: tuple[Callable[..., Tensor], Tensor]) -> None:
    loss, y = terminal
    modules = [nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)]
    model = nn.Sequential(*modules).double()
    p = Problem(model, dict(model.named_parameters()), loss, random(4, 3), y)
    A, H = chain(p), dense(p)
    assert error(A.to_dense(), H) <= TOLERANCE
    b = random(len(H), 1)
    assert residual(H, 0.01, A.inverse(0.01) @ b, b) <= 1e-9
