"""What the operators offer, what they refuse, and that models stay as found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import (
    DiagonalLinearOperator,
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
    NonDeterministicError,
    SingularSystemError,
    cg,
    jacobi_preconditioner,
)
from tests.cases.problem import classes, cross_entropy, normal, seeded
from tests.comparing import TOLERANCE, error, random
from tests.curvature.test_as_found import ERRORS, fingerprint, network, settings

DIAGONALS: Any = (
    GGNDiagonalLinearOperator,
    EFDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)
every_diagonal = pytest.mark.parametrize("cls", DIAGONALS)


def perceptron(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[Any]]:
    model = seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), dtype
    )
    return model, [(normal(dtype, 6, 3), classes(3, 6, ignore=True))]


def build(cls: Any, **options: Any) -> Any:
    model, data = perceptron()
    params = dict(model.named_parameters())
    return cls(model, cross_entropy(torch.float64), params, data, **options)


@every_diagonal
def test_forms_of_the_diagonal(cls: Any) -> None:
    D = build(cls)
    assert isinstance(D, DiagonalLinearOperator)
    assert D.symmetric
    assert D.psd == bool((D.diagonal() >= 0).all())
    assert error(D.to_dense(), D.diagonal().diag()) == 0
    blocks = D.blocks()
    assert tuple(blocks) == D.domain_names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert [b.shape for b in blocks.values()] == list(D.domain)
    assert torch.equal(torch.cat([b.flatten() for b in blocks.values()]), D.diagonal())
    blocks["0.bias"].zero_()  # a copy
    assert bool(D.blocks()["0.bias"].any())


def test_tags() -> None:
    assert build(GGNDiagonalLinearOperator).psd
    assert build(EFDiagonalLinearOperator).psd
    H = build(HessianDiagonalLinearOperator)
    assert not H.psd
    assert bool((H.diagonal() < 0).any())


@every_diagonal
def test_inverse(cls: Any) -> None:
    D = build(cls)
    damping = 1.0 + float(D.diagonal().abs().max())
    inverse = D.inverse(damping)
    v = random(D.shape[1])
    assert error(inverse @ (D @ v + damping * v), v) <= TOLERANCE
    assert inverse.domain_names == D.domain_names
    assert inverse.psd


def test_inverse_of_zeros_needs_damping() -> None:
    model, data = perceptron()
    unused = nn.Linear(2, 1).double()
    model.add_module("unused", nn.Identity())
    model[3].weight = nn.Parameter(unused.weight.data)
    D = GGNDiagonalLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data
    )
    assert not bool(D.blocks()["unused.weight"].any())
    with pytest.raises(SingularSystemError, match="singular"):
        D.inverse()
    assert D.inverse(1e-3).psd


def test_as_a_preconditioner() -> None:
    from curvop import GGNLinearOperator, IdentityLinearOperator

    model, data = perceptron()
    args = (model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    G, D = GGNLinearOperator(*args), GGNDiagonalLinearOperator(*args)
    A = G + 0.1 * IdentityLinearOperator.like(G)
    b = random(G.shape[1])
    plain = cg(A, b, rtol=1e-10, maxiter=500)
    M = cg(A, b, rtol=1e-10, maxiter=500, M=D.inverse(0.1))
    assert M.status == "converged"
    assert error(M.x, plain.x) <= 1e-7
    jacobi = jacobi_preconditioner(G, D.diagonal(), damping=0.1)
    assert error(jacobi.to_dense(), D.inverse(0.1).to_dense()) <= TOLERANCE


# ------------------------------------------------------------------- precisions


@every_diagonal
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(cls: Any, dtype: torch.dtype) -> None:
    model, data = perceptron(dtype)
    D = cls(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    wide, same = model.double(), [(X.double(), y) for X, y in data]
    truth = cls(wide, nn.CrossEntropyLoss(), list(wide.parameters()), same).diagonal()
    assert D.dtype == dtype
    assert error(D.diagonal().double(), truth) <= 100 * torch.finfo(dtype).eps


@every_diagonal
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(cls: Any, context: Any) -> None:
    model, data = perceptron()
    args = (model, cross_entropy(torch.float64), list(model.parameters()), data)
    expected = cls(*args).diagonal()
    with context():
        inside = cls(*args).diagonal()
    assert error(inside, expected) <= TOLERANCE


# --------------------------------------------------------------------- as found


@every_diagonal
@pytest.mark.parametrize("wrap", ["module", "closure"])
def test_models_are_left_as_found(cls: Any, wrap: str) -> None:
    net = network().eval()
    X, y = normal(torch.float64, 4, 3), normal(torch.float64, 4, 2, seed=2)
    params = [p for n, p in net.named_parameters() if not n.startswith("unused")]
    before, around = fingerprint(net), settings()
    D = cls(net if wrap == "module" else lambda X: net(X), nn.MSELoss(), params, [(X, y)])
    D @ torch.ones(D.shape[1], dtype=torch.float64)
    assert fingerprint(net) == before
    assert settings() == around


@every_diagonal
@pytest.mark.parametrize("raised", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("layer", ["enter", "norm", "leave"])
@pytest.mark.parametrize("call", [1, 3, 5])
@pytest.mark.filterwarnings("ignore:torch.func does not support this model:UserWarning")
def test_errors_in_a_hook(cls: Any, raised: BaseException, layer: str, call: int) -> None:
    """In the middle of forward, of the check or of the diagonal."""
    net = network().eval()
    X, y = normal(torch.float64, 4, 3), normal(torch.float64, 4, 2, seed=2)
    params = [p for n, p in net.named_parameters() if not n.startswith("unused")]
    calls = 0

    def fail(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise raised

    getattr(net, layer).register_forward_pre_hook(fail)
    before, around = fingerprint(net), settings()
    with pytest.raises(type(raised)):
        cls(net, nn.MSELoss(), params, [(X, y)])
    assert fingerprint(net) == before
    assert settings() == around


def test_does_not_follow_the_model() -> None:
    model, data = perceptron()
    D = EFDiagonalLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data
    )
    before = D.diagonal()
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(D.diagonal(), before)


# ----------------------------------------------------------------------- errors


def opaque(prediction: Tensor, y: Tensor) -> Tensor:
    return ((prediction.softmax(1)[:, 0] - y.double()) ** 4).mean()


def test_losses_without_terms() -> None:
    model, data = perceptron()
    args = (model, opaque, list(model.parameters()), data)
    with pytest.raises(TypeError, match="unreduced terms"):
        EFDiagonalLinearOperator(*args, reduction="mean")
    assert GGNDiagonalLinearOperator(*args, reduction="mean").form == "layers"


@every_diagonal
def test_bad_data(cls: Any) -> None:
    model, data = perceptron()
    args = (model, nn.CrossEntropyLoss(), list(model.parameters()))
    with pytest.raises(ValueError, match="one-shot"):
        cls(*args, iter(data))
    with pytest.raises(ValueError, match="num_data says 7"):
        cls(*args, data, num_data=7)
    with pytest.raises(ValueError, match="averages over nothing"):
        cls(*args, [(X, torch.full_like(y, -100)) for X, y in data])
    with pytest.raises(ValueError, match="finite"):
        cls(*args, [(X * float("nan"), y) for X, y in data])


@every_diagonal
def test_dropout_is_refused(cls: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 3)).double()
    _, data = perceptron()
    with pytest.raises(NonDeterministicError):
        cls(model, nn.CrossEntropyLoss(), list(model.parameters()), data)


@every_diagonal
def test_batch_statistics_over_several_batches_warn(cls: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    X, y = normal(torch.float64, 6, 3), classes(3, 6)
    with pytest.warns(UserWarning, match="statistics of each batch"):
        cls(
            model,
            nn.CrossEntropyLoss(),
            list(model.parameters()),
            [(X[:3], y[:3]), (X[3:], y[3:])],
        )


def test_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="speed"):
        build(HessianDiagonalLinearOperator, speed=2)
    with pytest.raises(ValueError, match="per="):
        build(EFDiagonalLinearOperator, per="batch")
