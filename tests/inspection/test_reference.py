"""The reference: against dense matrices, and where finite differences decide."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop.curvature.parameters import as_parameters
from curvop.curvature.probing import probe
from curvop.curvature.replica import Replica, duplicate, replica
from curvop.inspection.differences import converged
from curvop.inspection.reference import DISAGREES, STOPPED, UNCLEAR, Truth
from tests.cases import attention, parameterizations, truth
from tests.cases.curvature import MODELS, Model
from tests.cases.problem import Problem
from tests.comparing import error
from tests.inspection import models

NAMES = {"Hessian": "hessian", "GGN": "ggn", "EF": "ef-output"}


def copy_of(problem: Problem, dtype: torch.dtype = torch.float64) -> Replica:
    parameters = as_parameters(problem.model, problem.params)
    batch = (problem.X, problem.y)
    return replica(problem.model, problem.loss, problem.params, parameters, batch, dtype)


def problem_of(model: nn.Module, dtype: torch.dtype = torch.float64) -> Problem:
    X, y = models.data(dtype)[0]
    return Problem(model.to(dtype), list(model.parameters()), nn.MSELoss(), X, y)


def flat_probe(problem: Problem) -> Tensor:
    return torch.cat([b.flatten() for b in probe([p.detach() for p in problem.tensors])])


# -------------------------------------------------------------------- the products


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_products_are_those_of_the_dense_matrix(model: Model) -> None:
    problem = model.build(torch.float64)
    found = Truth(copy_of(problem))
    assert found.gradient_is_right
    v = flat_probe(problem)
    for matrix, name in NAMES.items():
        if name not in model.matrices:
            continue
        product, reference = found.product(matrix, v)
        assert error(product, truth.dense(problem, name) @ v) < 1e-10
        assert (reference.method, reference.doubt) == ("double backward", None)
        assert reference.dtype == "float64"


def test_products_of_single_precision_are_in_double() -> None:
    single = parameterizations.mlp(torch.float32)
    double = parameterizations.mlp(torch.float64)
    for p, q in zip(double.tensors, single.tensors, strict=True):
        p.data.copy_(q)
    double.loss.weight.copy_(single.loss.weight)
    double.X.copy_(single.X)
    v = flat_probe(double)
    product, _ = Truth(copy_of(single)).product("Hessian", v)
    assert error(product, truth.dense(double, "hessian") @ v) < 1e-12


@pytest.mark.parametrize("matrix", ["Hessian", "GGN", "EF"])
@pytest.mark.parametrize("function", [models.WrongCube, models.OnceCube])
def test_wrong_double_backward(matrix: Any, function: type) -> None:
    """Differences are taken where it is wrong, to five digits at least."""
    problem = problem_of(models.around(function, torch.float64))
    right = problem_of(models.around(models.cube, torch.float64))
    found = Truth(copy_of(problem))
    assert found.gradient_is_right
    v = flat_probe(problem)
    product, reference = found.product(matrix, v)
    assert error(product, truth.dense(right, NAMES[matrix]) @ v) < 1e-5
    is_wrong = matrix == "Hessian" or function is models.OnceCube
    assert reference.method == ("finite differences" if is_wrong else "double backward")
    assert reference.doubt == (DISAGREES if is_wrong else None)


def test_surrogate_gradient_is_taken_at_its_word() -> None:
    problem = problem_of(models.around(models.Through, torch.float64))
    found = Truth(copy_of(problem))
    assert found.gradient_is_right is False
    v = flat_probe(problem)
    product, reference = found.product("Hessian", v)
    assert (reference.method, reference.doubt) == ("double backward", STOPPED)
    assert error(product, truth.dense(problem, "hessian") @ v) < 1e-10


def test_kink_is_no_error() -> None:
    """ReLU at zero: the gradient jumps, the loss has a kink."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[0].bias)
    problem = problem_of(model)
    problem.X.zero_()
    found = Truth(copy_of(problem))
    assert found.gradient_is_right is None
    v = flat_probe(problem)
    product, reference = found.product("Hessian", v)
    assert (reference.method, reference.doubt) == ("double backward", UNCLEAR)
    assert error(product, truth.dense(problem, "hessian") @ v) < 1e-10


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
    found = Truth(copy_of(problem))
    assert found.gradient_is_right
    v = flat_probe(problem)
    for matrix, name in NAMES.items():
        product, reference = found.product(matrix, v)
        assert reference.doubt is None
        assert error(product, truth.dense(problem, name) @ v) < 1e-10


# ----------------------------------------------------------------- the differences


def test_differences() -> None:
    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    before = x.clone()
    found = converged(lambda: torch.stack([x.sin().sum(), x.prod()]), [x], v)
    slopes = [(x.cos() * v).sum(), x.prod() * (v / x).sum()]
    assert error(found.value, torch.stack(slopes)) < 1e-8
    assert float((found.value - torch.stack(slopes)).norm()) <= found.error
    assert torch.equal(x, before)


@pytest.mark.parametrize("function", [torch.sign, torch.abs, torch.relu])
def test_differences_do_not_converge_at_a_kink(function: Any) -> None:
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert converged(lambda: function(x).sum()[None], [x], torch.ones_like(x)) is None


def test_differences_of_single_precision_inside_do_not_pretend() -> None:
    x = torch.tensor([0.3, 1.0], dtype=torch.float64)

    def rounded() -> Tensor:
        return x.float().sin().double()

    assert converged(rounded, [x], torch.ones_like(x)) is None


def test_differences_put_back_after_an_error() -> None:
    x = torch.ones(2, dtype=torch.float64)
    calls = []

    def breaks() -> Tensor:
        calls.append(x.clone())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return x.sum()[None]

    with pytest.raises(KeyboardInterrupt):
        converged(breaks, [x], torch.ones_like(x))
    assert not torch.equal(calls[-1], torch.ones(2))
    assert torch.equal(x, torch.ones(2, dtype=torch.float64))


# ------------------------------------------------------------------------ the copy

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
    made = copy_of(problem)
    assert made.predict().dtype is torch.float64
    torch.testing.assert_close(made.predict().float(), of_globals(X))
    with torch.no_grad():
        made.leaves[0].add_(1.0)
    assert not torch.allclose(made.predict().float(), of_globals(X))
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
    made = copy_of(Problem(model, [w], nn.MSELoss(), X32, y[:, 0]))
    torch.testing.assert_close(made.predict().float(), model(X32))


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
        copy_of(problem)


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
    made = copy_of(Problem(model, values, nn.MSELoss(), X, y))
    expected = torch.func.functional_call(model, values, (X,))
    torch.testing.assert_close(made.predict().float(), expected)


@pytest.mark.parametrize("build", [parameterizations.tied, attention.multihead])
def test_copy_leaves_the_original(build: Any) -> None:
    problem = build(torch.float32)
    before = {k: t.clone() for k, t in problem.model.state_dict().items()}
    made = copy_of(problem)
    with torch.no_grad():
        for leaf in made.leaves:
            leaf.zero_()
    after = problem.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.dtype is torch.float32 for p in problem.model.parameters())


def test_no_copy_of_what_cannot_be_copied() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not to be copied")

    found = models.of(Stubborn(3, 2))
    assert {r.method for r in found.references} == {None}
    assert "not to be copied" in found.references[0].doubt
    assert {t.verdict for t in found.trials if t.works} == {"unchecked"}
    assert not found.is_ready


def test_no_copy_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvop.curvature.replica._free_bytes", lambda device: 1000)
    found = models.looked_at(models.mlp())
    assert found.references[0].method is None
    assert "GB are free" in found.references[0].doubt


def test_precision_that_is_fixed_in_the_code() -> None:
    """In double precision the model fails; it is compared in single precision."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, X: Tensor) -> Tensor:
            return self.linear(X.float()).tanh()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = models.of(Fixed())
    assert {r.dtype for r in found.references} == {"float32"}
    assert found.is_ready, str(found)
