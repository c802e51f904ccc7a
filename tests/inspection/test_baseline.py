"""The reference: against dense matrices, and where differences do not tell."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.empirical_fisher import EFLinearOperator
from curvop.curvature.ggn import GGNLinearOperator
from curvop.curvature.hessian import HessianLinearOperator
from curvop.curvature.proof import Truth, is_gradient
from curvop.inspection import Reference, preflight
from curvop.inspection.baseline import reference
from curvop.operators import probe
from curvop.risk.double_precision import duplicate
from curvop.risk.parameters import Parameters
from tests.cases import attention, parameterizations, truth
from tests.cases.curvature import MODELS, Model
from tests.cases.problem import Problem
from tests.comparing import error
from tests.inspection import models

NAMES = {"Hessian": "hessian", "GGN": "ggn", "EF": "ef-output"}


def operator(problem: Problem, matrix: str = "Hessian") -> CurvatureLinearOperator:
    """Over all data as one batch."""
    kind = {
        "Hessian": HessianLinearOperator,
        "GGN": GGNLinearOperator,
        "EF": EFLinearOperator,
    }[matrix]
    options = {**problem.options, "check_deterministic": False}
    data = [(problem.X, problem.y)]
    return kind(problem.model, problem.loss, problem.params, data, **options)


def found_for(problem: Problem, matrix: Any) -> tuple[Truth | None, Reference]:
    v = [b.double().view(1, *b.shape) for b in probe([p.detach() for p in problem.tensors])]
    return reference(matrix, operator(problem, matrix), (problem.X, problem.y), v)


def problem_of(model: nn.Module, dtype: torch.dtype = torch.float64) -> Problem:
    X, y = models.data(dtype)[0]
    return Problem(model.to(dtype), list(model.parameters()), nn.MSELoss(), X, y)


def flat_probe(problem: Problem) -> Tensor:
    return flat(probe([p.detach() for p in problem.tensors]))


def flat(blocks: Any) -> Tensor:
    return torch.cat([b.flatten() for b in blocks])


# -------------------------------------------------------------------- the products


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_products_are_those_of_the_dense_matrix(model: Model) -> None:
    """To within what they say of themselves."""
    problem = model.build(torch.float64)
    v = flat_probe(problem)
    for matrix, name in NAMES.items():
        if name not in model.matrices:
            continue
        known, how = found_for(problem, matrix)
        assert known is not None, how
        assert is_gradient(known.subject)
        assert error(flat(known.product), truth.dense(problem, name) @ v) <= known.margin
        assert known.margin < 1e-6
        assert how == Reference(matrix, "finite differences", "float64", None, known.error)


def test_products_of_single_precision_are_in_double() -> None:
    single = parameterizations.mlp(torch.float32)
    double = parameterizations.mlp(torch.float64)
    for p, q in zip(double.tensors, single.tensors, strict=True):
        p.data.copy_(q)
    double.loss.weight.copy_(single.loss.weight)
    double.X.copy_(single.X)
    known, how = found_for(single, "Hessian")
    assert how.dtype == "float64"
    v = flat_probe(double)
    assert error(flat(known.product), truth.dense(double, "hessian") @ v) < 1e-8


@pytest.mark.parametrize("matrix", ["Hessian", "GGN", "EF"])
@pytest.mark.parametrize("function", [models.WrongCube, models.OnceCube])
def test_wrong_double_backward(matrix: Any, function: type) -> None:
    problem = problem_of(models.around(function, torch.float64))
    right = problem_of(models.around(models.cube, torch.float64))
    known, _ = found_for(problem, matrix)
    assert is_gradient(known.subject)
    v = flat_probe(problem)
    assert error(flat(known.product), truth.dense(right, NAMES[matrix]) @ v) < 1e-8


def test_surrogate_gradient() -> None:
    known, _ = found_for(problem_of(models.around(models.Through)), "Hessian")
    assert not is_gradient(known.subject)


@pytest.mark.parametrize("matrix", ["Hessian", "GGN", "EF"])
def test_kink_is_no_error(matrix: Any) -> None:
    """ReLU at zero: the gradient jumps, the loss has a kink, differences do not tell."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[0].bias)
    problem = problem_of(model)
    problem.X[:2].zero_()
    known, how = found_for(problem, matrix)
    assert known is None
    assert how.method is None
    assert "do not converge in float64" in how.doubt
    assert is_gradient(operator(problem).subject(problem.X, problem.y))


def test_kink_is_unchecked() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[0].bias)
    found = models.of(model, [(torch.zeros(6, 3), models.data()[0][1])])
    assert {t.verdict for t in found.trials if t.works} == {"unchecked"}
    assert {f.way for f in found.forecasts} == {"func"}
    assert all(f.proof.startswith("proven near by to ") for f in found.forecasts)
    assert "is not proven: differences" in " ".join(str(found).split())
    assert not found.is_ready


def test_padding_of_a_tied_embedding() -> None:
    """The row is a constant where it is looked up, and moves as the head's weight."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3, padding_idx=1)

        def forward(self, X: Tensor) -> Tensor:
            return self.embedding(X).tanh().sum(1) @ self.embedding.weight.T

    model = Tied().double()
    nn.init.normal_(model.embedding.weight)
    X, y = torch.tensor([[0, 1, 2], [1, 4, 3]]), torch.tensor([1, 3])
    problem = Problem(model, list(model.parameters()), nn.CrossEntropyLoss(), X, y)
    v = flat_probe(problem)
    for matrix, name in NAMES.items():
        known, _ = found_for(problem, matrix)
        assert is_gradient(known.subject)
        assert error(flat(known.product), truth.dense(problem, name) @ v) <= known.margin


# ------------------------------------------------------------------------ the copy


def in_double(problem: Problem) -> tuple[Parameters, Any]:
    """Model and parameters in double precision, and the inputs."""
    op, X, _ = operator(problem).in_double(problem.X, problem.y)
    return op.risk.parameters, X


SCALE = torch.tensor(1.5)
WEIGHT = torch.tensor([1.0, 2.0, 3.0])
MODULE = nn.Linear(3, 2)


def helper(X: Tensor) -> Tensor:
    return X @ WEIGHT


def of_globals(X: Tensor) -> Tensor:
    return SCALE * helper(X) + MODULE(X).sum(1)


def test_copy_of_a_function_of_globals() -> None:
    given = [WEIGHT, *MODULE.parameters()]
    before = [p.detach().clone() for p in given]
    X, y = models.data()[0]
    problem = Problem(of_globals, given, nn.MSELoss(), X, y[:, 0])
    at, inputs = in_double(problem)
    predicted = at.model(at.tensors, inputs)
    assert predicted.dtype is torch.float64
    torch.testing.assert_close(predicted.float(), of_globals(X))
    with torch.no_grad():
        at.tensors[0].add_(1.0)
    assert not torch.allclose(at.model(at.tensors, inputs).float(), of_globals(X))
    assert all(torch.equal(p, b) for p, b in zip(given, before, strict=True))


def test_copy_of_nested_closures() -> None:
    w = torch.tensor([1.0, 2.0, 3.0])
    layers = [lambda X: X @ w, torch.tanh]

    def model(X: Tensor) -> Tensor:
        for layer in layers:
            X = layer(X)
        return X

    def outer(X: Tensor) -> Tensor:
        return inner(X) * w.sum()

    def inner(X: Tensor) -> Tensor:
        return (X @ w).tanh()

    memo = {id(w): w.double() + 1}
    X = models.data()[0][0].double()
    copied = duplicate(outer, memo)
    w2 = memo[id(w)]
    torch.testing.assert_close(copied(X), (X @ w2).tanh() * w2.sum())
    X32, y = models.data()[0]
    at, inputs = in_double(Problem(model, [w], nn.MSELoss(), X32, y[:, 0]))
    torch.testing.assert_close(at.model(at.tensors, inputs).float(), model(X32))


def test_copy_of_what_cannot_be_seen_through() -> None:
    """A function that a module keeps in an object: said, not guessed."""
    w = torch.tensor([1.0, 2.0, 3.0])

    class Keeper:
        def __init__(self) -> None:
            self.function = lambda X: X @ w.to(X.dtype)

        def __call__(self, X: Tensor) -> Tensor:
            return self.function(X)

    X, y = models.data()[0]
    problem = Problem(Keeper(), [w.requires_grad_()], nn.MSELoss(), X, y[:, 0])
    with pytest.raises(RuntimeError, match="does not compute with the copied"):
        in_double(problem)


def test_copy_of_a_recursive_function() -> None:
    w = torch.tensor(2.0)

    def power(x: Tensor, n: int) -> Tensor:
        return x if n == 0 else w * power(x, n - 1)

    copied = duplicate(power, {id(w): torch.tensor(3.0)})
    assert float(copied(torch.tensor(1.0), 3)) == 27.0
    assert float(power(torch.tensor(1.0), 3)) == 8.0


def test_copy_with_other_values_by_name() -> None:
    model = models.mlp()
    values = {name: p.detach() + 1 for name, p in model.named_parameters()}
    X, y = models.data()[0]
    at, inputs = in_double(Problem(model, values, nn.MSELoss(), X, y))
    expected = torch.func.functional_call(model, values, (X,))
    torch.testing.assert_close(at.model(at.tensors, inputs).float(), expected)


@pytest.mark.parametrize("build", [parameterizations.tied, attention.multihead])
def test_copy_leaves_the_original(build: Any) -> None:
    problem = build(torch.float32)
    before = {k: t.clone() for k, t in problem.model.state_dict().items()}
    at, _ = in_double(problem)
    with torch.no_grad():
        for leaf in at.tensors:
            leaf.zero_()
    after = problem.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.dtype is torch.float32 for p in problem.model.parameters())


def test_module_that_cannot_be_copied() -> None:
    """None is made."""

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not to be copied")

    found = models.of(Stubborn(3, 2))
    assert {r.dtype for r in found.references} == {"float64"}
    assert found.is_ready, str(found)


def test_closure_that_cannot_be_copied() -> None:
    """It is compared in its own precision."""

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not to be copied")

    model = Stubborn(3, 2)
    params = list(model.parameters())
    found = preflight(
        lambda X: model(X).tanh(), nn.MSELoss(), params, models.data(), max_seconds=300.0
    )
    assert {r.dtype for r in found.references} == {"float32"}
    assert found.is_ready, str(found)
    assert "Compared with finite differences in float32" in str(found)


def test_no_copy_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvop.risk.double_precision._free_bytes", lambda device: 1000)
    found = models.looked_at(models.mlp())
    assert {r.dtype for r in found.references} == {"float32"}
    assert all(1e-6 < r.error <= 1e-3 for r in found.references)


def test_precision_that_is_fixed_in_the_code() -> None:
    """In double precision the model computes in double precision all the same."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, X: Tensor) -> Tensor:
            return self.linear(X.float()).tanh()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = models.of(Fixed())
    assert {r.dtype for r in found.references} == {"float64"}
    assert found.is_ready, str(found)
