"""Bad input: the message names the stage and the remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import ChainHessianLinearOperator, NonDeterministicError, SingularSystemError
from tests.comparing import random
from tests.direct.chains import chain, mlp, problem

X, Y = random(3, 3), random(3, 3, seed=1)


def refuses(
    kind: type[Exception],
    message: str,
    *modules: nn.Module,
    model: Any = None,
    loss: Any = None,
    X: Any = X,
    y: Any = Y,
    **options: Any,
) -> None:
    if model is None:
        model = nn.Sequential(*modules).double()
    with pytest.raises(kind, match=message):
        ChainHessianLinearOperator(model, loss or nn.MSELoss(), X, y, **options)


def linear() -> nn.Linear:
    return nn.Linear(3, 3).double()


# ------------------------------------------------------------------------- chain


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)


class Skipping(nn.Sequential):
    def forward(self, z: Tensor) -> Tensor:
        return z + super().forward(z)


class Paired(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z


class Singular(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z / 0


class Root(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z * 0).abs().sqrt()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, z: Tensor) -> Tensor:
        return z + torch.randn(z.shape, generator=self.generator, dtype=z.dtype)


def test_no_chain() -> None:
    refuses(TypeError, "nn.Sequential.*got Other.*HessianLinear", model=Other())
    refuses(TypeError, "Skipping with.* a forward of its own", model=Skipping(linear()))
    model = nn.Sequential(linear())
    model.register_forward_hook(lambda *_: None)
    refuses(TypeError, "Sequential with hooks", model=model)


def test_modules_and_parameters_used_twice() -> None:
    a, b = linear(), linear()
    refuses(
        ValueError, r"stage '2' \(Linear\) is the same module as stage '0'", a, nn.Tanh(), a
    )
    b.weight = a.weight
    refuses(ValueError, r"stage '1' \(Linear\) is tied to stage '0' .*Copy it", a, b)
    nested = nn.Sequential(nn.Tanh(), b)
    refuses(ValueError, r"stage '1.1' \(Linear\) is tied to stage '0'", a, nested)


def test_several_inputs_or_outputs() -> None:
    refuses(
        TypeError,
        r"stage '1' \(Bilinear\) cannot be called",
        linear(),
        nn.Bilinear(3, 3, 3),
    )
    refuses(TypeError, r"got tuple from stage '1' \(Paired\)", linear(), Paired())
    refuses(
        ValueError, r"stage '0' \(Linear\) cannot be called .* \(3, 3\)", nn.Linear(4, 3)
    )
    refuses(TypeError, "one tensor, got tuple", linear(), X=(X, X))


def test_randomness() -> None:
    torch.manual_seed(0)  # RReLU draws for negative inputs only: of 45 seeds one has none
    refuses(
        NonDeterministicError,
        r"stage '1' \(Dropout\) has dropout in train mode.*eval\(\)",
        linear(),
        nn.Dropout(0.5),
    )
    refuses(NonDeterministicError, r"stage '1' \(RReLU\) draws", linear(), nn.RReLU())
    refuses(NonDeterministicError, r"stage '1' \(Noisy\) draws", linear(), Noisy())


def test_running_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    refuses(
        ValueError,
        r"stage '1' \(BatchNorm1d\) updates.*eval\(\).*track_running_stats=False",
        linear(),
        norm,
        linear(),
    )
    assert int(norm.num_batches_tracked) == 0
    assert not norm.running_mean.any()


def test_no_second_derivative() -> None:
    refuses(
        RuntimeError,
        r"twice, but for stage '1' \(Hardsigmoid\)",
        linear(),
        nn.Hardsigmoid(),
        linear(),
    )


def test_nothing_to_differentiate_in() -> None:
    frozen = linear().requires_grad_(False)
    refuses(ValueError, "requires a gradient, got none.*requires_grad_", frozen)
    refuses(ValueError, "requires a gradient, got none", nn.Tanh())


def test_dtypes() -> None:
    model = nn.Sequential(linear(), nn.Linear(3, 3))
    refuses(
        TypeError, r"float64 in stage '0' .* and torch.float32 in stage '1'", model=model
    )
    refuses(
        TypeError, r"dtype torch.float64, got torch.float32.*to\(", linear(), X=X.float()
    )
    refuses(TypeError, "real inputs", linear(), X=X.cfloat())


def test_devices() -> None:
    mixed = nn.Sequential(linear(), nn.Linear(3, 3, device="meta", dtype=torch.float64))
    refuses(
        ValueError, r"cpu in stage '0' .* and meta in stage '1'.*to\(device", model=mixed
    )
    refuses(
        ValueError, "inputs on the model's device cpu, got meta", linear(), X=X.to("meta")
    )
    refuses(
        ValueError, "targets on the model's device cpu, got meta", linear(), y=Y.to("meta")
    )


# -------------------------------------------------------------------- loss, batch


def test_losses() -> None:
    refuses(
        ValueError,
        r"scalar loss, got \(3, 3\).*reduction",
        linear(),
        loss=nn.MSELoss(reduction="none"),
    )
    refuses(ValueError, "scalar loss, got float", linear(), loss=lambda f, y: 1.0)
    refuses(ValueError, "finite loss, got nan; .*: the loss", linear(), y=Y * math.nan)
    refuses(ValueError, "finite loss, got nan; .*: the inputs", linear(), X=X * math.nan)
    refuses(ValueError, r"finite loss.*: stage '1' \(Singular\)", linear(), Singular())
    refuses(ValueError, r"finite derivatives.*'1' \(Root\)", linear(), Root())
    single = torch.ones(3)
    refuses(
        RuntimeError,
        r"failed on a prediction of shape \(3, 3\) in double precision",
        linear(),
        loss=lambda f, y: (f @ single).sum(),
    )
    refuses(TypeError, "Expected a loss", linear(), loss=3)


def test_batches() -> None:
    refuses(ValueError, "batch of inputs", linear(), X=X[:0])
    refuses(ValueError, "'hessian' or 'ggn'", linear(), curvature="fisher")
    refuses(ValueError, "positive memory_limit", linear(), memory_limit=0)
    refuses(TypeError, "memory_limit as a number", linear(), memory_limit="8 GB")


# ------------------------------------------------------------------------ inverse


def test_dampings() -> None:
    A = chain(mlp(2, 3, 2))
    for damping in (math.nan, math.inf):
        with pytest.raises(ValueError, match="damping to be finite"):
            A.inverse(damping)
    with pytest.raises(TypeError, match="damping as a number, got str"):
        A.inverse("0.1")
    with pytest.raises(ValueError, match="refinements, got -1"):
        A.inverse(0.1, refine=-1)
    with pytest.raises(ValueError, match="positive rtol"):
        A.inverse(0.1, rtol=0.0)


def test_right_hand_sides() -> None:
    inverse = chain(mlp(2, 3, 2)).inverse(0.1)
    P = inverse.shape[0]
    for value in (math.nan, math.inf):
        b = random(P)
        b[4] = value
        with pytest.raises(ValueError, match="finite right-hand sides"):
            inverse @ b
    with pytest.raises(ValueError, match=rf"\({P},\) or \({P}, K\), got \({P + 1},\)"):
        inverse @ random(P + 1)
    with pytest.raises(TypeError, match=r"float64, got torch\.float32"):
        inverse @ random(P).float()


def test_no_damping_with_too_few_data() -> None:
    A = chain(mlp(2, 4, 2))
    with pytest.raises(
        SingularSystemError,
        match=r"null space of \d+ dimensions in stage '2' \(Linear\): n = 2 rows",
    ):
        A.inverse(0.0)
    one = chain(problem(lambda: [nn.Linear(4, 3)], 2, 4))
    with pytest.raises(SingularSystemError, match=r"null space of 9 dim.*stage '0'"):
        one.inverse(0.0)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_singular_systems_are_caught(curvature: str) -> None:
    """Dead units: rows and columns of zeros that no shape tells of."""
    p = mlp(3, 3, 12, nn.ReLU)
    with torch.no_grad():
        p.model[0].bias.fill_(-100.0)
    A = chain(p, curvature=curvature)
    with pytest.raises(SingularSystemError):
        A.inverse(0.0) @ random(A.shape[0])
    assert (A.inverse(0.1) @ random(A.shape[0])).isfinite().all()


def test_shifts_by_an_eigenvalue_are_caught() -> None:
    p = problem(lambda: [nn.Linear(2, 1, bias=False)], 4, 2)
    A = chain(p)
    eigenvalue = float(torch.linalg.eigvalsh(A.to_dense())[0])
    with pytest.raises(SingularSystemError):
        A.inverse(-eigenvalue, rtol=1e-12) @ random(2)
    # whoever wants what there is gets it
    assert A.inverse(-eigenvalue - 1e-9, rtol=None) @ random(2) is not None


def test_singular_is_an_arithmetic_error() -> None:
    assert issubclass(SingularSystemError, ArithmeticError)
