"""Bad input: the right exception, and a message with expected, got and mend."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy
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

from .dense import Waves, batches, normal

N, C = 6, 3
MODEL = Waves(2, (C,))
PARAMS = list(MODEL.parameters())
X, Y = normal(N, 2, seed=1), normal(N, C, seed=2)
DATA = batches(X, Y, [(0, 1, 2), (3, 4, 5)])
LOSS = nn.MSELoss()
P = sum(p.numel() for p in PARAMS)
CURVATURES = (HessianLinearOperator, GGNLinearOperator, EFLinearOperator)
JACOBIANS = (JacobianLinearOperator, TransposedJacobianLinearOperator)
Build = Callable[..., Any]


def builders() -> list[Any]:
    """Each operator as ``build(data=..., params=..., ...)`` with good defaults."""

    def curvature(cls: Any, **changes: Any) -> Any:
        given = {"model_func": MODEL, "loss_func": LOSS, "params": PARAMS, "data": DATA}
        return cls(**(given | changes))

    def jacobian(cls: Any, **changes: Any) -> Any:
        given = {"model_func": MODEL, "params": PARAMS, "data": DATA}
        return cls(**(given | changes))

    kinds = [(curvature, cls) for cls in CURVATURES] + [(jacobian, c) for c in JACOBIANS]
    return [
        pytest.param(functools.partial(kind, cls), id=cls.__name__) for kind, cls in kinds
    ]


everywhere = pytest.mark.parametrize("build", builders())
on_curvature = pytest.mark.parametrize("build", builders()[: len(CURVATURES)])
on_jacobians = pytest.mark.parametrize("build", builders()[len(CURVATURES) :])


@everywhere
def test_good_input_is_accepted(build: Build) -> None:
    assert P in build().shape


# ----------------------------------------------------------------------- the data


@everywhere
@pytest.mark.parametrize("once", [iter, lambda data: (b for b in data), enumerate])
def test_one_shot_iterator(build: Build, once: Callable[[Any], Iterator[Any]]) -> None:
    data = once(DATA)
    with pytest.raises(ValueError, match=r"many times, got the one-shot.*list\(data\)"):
        build(data=data)
    assert len(list(data)) == len(DATA)  # nothing was eaten


class Unsized:
    """An iterable of unknown length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@everywhere
@pytest.mark.parametrize("data", [[], (), Unsized([])], ids=["list", "tuple", "unsized"])
def test_empty_data(build: Build, data: Any) -> None:
    with pytest.raises(ValueError, match=r"at least one batch of data, got none"):
        build(data=data)


@everywhere
@pytest.mark.parametrize(
    ("data", "got"),
    [(X, r"got a tensor\. Wrap one batch as \[\(X, y\)\]"), (3, r"got int\. Wrap one")],
    ids=["tensor", "int"],
)
def test_data_that_is_no_iterable_of_batches(build: Build, data: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"iterable of batches \(X, y\), {got}"):
        build(data=data)


@everywhere
@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (X, "got Tensor of length 6"),
        ((X, Y, Y), "got tuple of length 3"),
        ((X,), "got tuple of length 1"),
        ({"x": X, "z": Y}, "got dict of length 2, with the keys 'x', 'z', none of them"),
        (7, "got int"),
    ],
    ids=["tensor", "triple", "single", "dict", "int"],
)
def test_batches_that_are_no_pairs(build: Build, batch: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"pairs \(X, y\), {got}.*\(\(ids, mask\), y\)"):
        build(data=[batch])


def test_one_batch_that_is_not_wrapped() -> None:
    """``data=(X, y)`` with two rows each would be read as two pairs."""
    with pytest.raises((TypeError, ValueError), match=r"Wrap one batch|pairs"):
        HessianLinearOperator(MODEL, LOSS, PARAMS, (X[:2], Y[:2]))


@everywhere
@pytest.mark.parametrize("num_data", [N - 1, N + 1, 1])
def test_contradicting_num_data(build: Build, num_data: int) -> None:
    message = f"num_data says {num_data}, but the data holds 6.*Leave num_data out"
    with pytest.raises(ValueError, match=message):
        build(num_data=num_data)


@everywhere
def test_contradicting_num_data_without_check(build: Build) -> None:
    """It is an error as soon as one pass has been made."""
    A = build(num_data=N + 1, check_deterministic=False)
    with pytest.raises(ValueError, match=r"num_data says 7|got 18.*num_data"):
        A @ torch.ones(A.shape[1], dtype=torch.float64)


@everywhere
@pytest.mark.parametrize("num_data", [0, -3, 2.5, "6", True])
def test_bad_num_data(build: Build, num_data: Any) -> None:
    with pytest.raises(ValueError, match=r"positive.*num_data, got"):
        build(num_data=num_data)


@everywhere
def test_unknown_batch_size(build: Build) -> None:
    params = {"w": normal(2, C, seed=3)}

    def model(p: dict[str, Tensor], X: Any) -> Tensor:
        return X["x"] @ p["w"] * X["scale"]

    ragged = {"x": X, "scale": torch.ones(C).double()}
    data = [(ragged, (Y, Y[0]))]
    options: dict[str, Any] = {"loss_func": lambda p, y: ((p - y[0]) ** 2).sum()}
    options = {} if "Jacobian" in str(build) else options | {"reduction": "sum"}
    if "EFLinear" in str(build):
        options = {"loss_func": lambda p, y, reduction="sum": (p - y[0]) ** 2}
    make = functools.partial(build, model_func=model, params=params, data=data, **options)
    with pytest.raises(ValueError, match=r"Cannot tell how many data.*batch_size_fn"):
        make(num_data=N)


@everywhere
def test_changed_data(build: Build) -> None:
    data = list(DATA)
    A = build(data=data, num_data=N)
    data.append((X, Y))
    with pytest.raises(ValueError, match=r"num_data says 6.*holds 12|has changed"):
        A @ torch.ones(A.shape[1], dtype=torch.float64)


@on_jacobians
@pytest.mark.parametrize(("num_batches", "got"), [(1, "9"), (3, "more|27")])
def test_changed_data_of_a_jacobian(build: Build, num_batches: int, got: str) -> None:
    data = list(DATA)
    J = build(data=data)
    data[:] = [*DATA, *DATA][:num_batches]
    message = rf"18 predicted numbers.*got ({got})\. The data has changed"
    with pytest.raises(ValueError, match=message):
        J @ torch.ones(J.shape[1], dtype=torch.float64)


# ----------------------------------------------------------------------- the loss


@on_curvature
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["input", "target"])
def test_loss_that_is_not_finite(build: Build, bad: float, where: str) -> None:
    x, y = X.clone(), Y.clone()
    (x if where == "input" else y)[4, 1] = bad
    with pytest.raises(ValueError, match=r"finite loss over the data, got.*Look for NaN"):
        build(data=batches(x, y, [range(N)]))


@on_curvature
def test_loss_that_turns_infinite(build: Build) -> None:
    """Also without the check, and after construction."""
    model = Waves(2, (C,))
    params = list(model.parameters())
    A = build(model_func=model, params=params, check_deterministic=False)
    with torch.no_grad():
        params[1][0] = math.nan
    with pytest.raises(ValueError, match=r"finite loss over the data, got nan"):
        A @ torch.ones(P, dtype=torch.float64)


@on_curvature
@pytest.mark.parametrize(
    "loss", [nn.MSELoss(reduction="none"), functools.partial(F.mse_loss, reduction="none")]
)
def test_unreduced_loss(build: Build, loss: Any) -> None:
    with pytest.raises(ValueError, match=r"'mean' or 'sum', got 'none'.*scalar loss"):
        build(loss_func=loss)


@on_curvature
@pytest.mark.parametrize("reduction", ["none", "average", ""])
def test_unknown_reduction(build: Build, reduction: str) -> None:
    with pytest.raises(ValueError, match=f"'mean' or 'sum', got '{reduction}'"):
        build(loss_func=lambda p, y: (p - y).sum(), reduction=reduction)


@on_curvature
@pytest.mark.parametrize(
    ("loss", "told", "given"),
    [
        (nn.MSELoss(), "mean", "sum"),
        (nn.MSELoss(reduction="sum"), "sum", "mean"),
        (F.mse_loss, "mean", "sum"),
    ],
)
def test_contradicting_reduction(build: Build, loss: Any, told: str, given: str) -> None:
    message = f"reduction='{given}' contradicts.*'{told}'.*Leave the argument out"
    with pytest.raises(ValueError, match=message):
        build(loss_func=loss, reduction=given)


@on_curvature
def test_same_reduction_twice_is_fine(build: Build) -> None:
    build(loss_func=nn.MSELoss(), reduction="mean")


@on_curvature
def test_missing_reduction(build: Build) -> None:
    def my_loss(prediction: Tensor, y: Tensor) -> Tensor:
        return ((prediction - y) ** 2).mean()

    message = r"tells its reduction, got my_loss.*reduction='mean' or reduction='sum'"
    with pytest.raises(ValueError, match=message):
        build(loss_func=my_loss)


@on_curvature
@pytest.mark.parametrize("loss", ["mse", None, torch.ones(3)])
def test_loss_that_is_no_callable(build: Build, loss: Any) -> None:
    message = f"torch loss module or a callable.*got {type(loss).__name__}"
    with pytest.raises(TypeError, match=message):
        build(loss_func=loss)


@pytest.mark.parametrize("reduction", ["mean", "sum", lambda p, y: len(y)])
@pytest.mark.parametrize("operator", [HessianLinearOperator, GGNLinearOperator])
def test_loss_that_is_no_scalar(operator: Any, reduction: Any) -> None:
    def square(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y) ** 2

    message = r"scalar loss.*got from square a Tensor of shape \(3, 3\)\. Reduce it"
    with pytest.raises(ValueError, match=message):
        operator(MODEL, square, PARAMS, DATA, reduction=reduction)
    with pytest.raises(ValueError, match=r"scalar loss.*got from <lambda> a float"):
        operator(MODEL, lambda p, y: 1.5, PARAMS, DATA, reduction=reduction)


def test_empirical_fisher_of_opaque_callable() -> None:
    with pytest.raises(TypeError, match=r"unreduced terms.*only gives a scalar.*'none'"):
        EFLinearOperator(MODEL, lambda p, y: (p - y).sum(), PARAMS, DATA, reduction="sum")


@pytest.mark.parametrize("per", ["batch", None, 1])
def test_bad_per(per: Any) -> None:
    with pytest.raises(ValueError, match=f"'term', 'example' or 'output', got {per!r}"):
        EFLinearOperator(MODEL, LOSS, PARAMS, DATA, per=per)


def test_terms_that_are_not_per_example() -> None:
    """Cross-entropy over flattened positions has no example axis."""
    model = nn.Sequential(Waves(2, (2, C)), nn.Flatten(0, 1))
    data = [(X, torch.zeros(2 * N, dtype=torch.long))]
    with pytest.raises(ValueError, match=r"6 examples.*got shape \(12,\).*Keep the batch"):
        EFLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), data, per="example"
        )


# ------------------------------------------------------------- model, parameters


@everywhere
@pytest.mark.parametrize("params", [[], (), {}, iter([])], ids=type)
def test_no_parameters(build: Build, params: Any) -> None:
    message = r"at least one parameter, got none.*list\(model.parameters\(\)\)"
    with pytest.raises(ValueError, match=message):
        build(params=params)


@everywhere
def test_foreign_parameters(build: Build) -> None:
    copies = [p.detach().clone() for p in PARAMS]
    message = r"Parameter 0 of shape \(2, 3\) does not belong.*not copies"
    with pytest.raises(ValueError, match=message):
        build(params=copies)
    with pytest.raises(ValueError, match=r"Parameter 'v' of shape.*does not belong"):
        build(params={"v": torch.zeros(3).double()})


@everywhere
def test_parameters_that_a_closure_does_not_use(build: Build) -> None:
    other = [torch.zeros(3, dtype=torch.float64, requires_grad=True)]
    with pytest.raises(ValueError, match=r"uses none of the given parameters.*Pass the"):
        build(model_func=lambda X: MODEL(X), params=other)


@everywhere
def test_duplicated_parameters(build: Build) -> None:
    with pytest.raises(ValueError, match=r"each parameter once; one of them comes twice"):
        build(params=[*PARAMS, PARAMS[0]])


@everywhere
def test_generator_of_parameters_is_fine(build: Build) -> None:
    assert P in build(params=MODEL.parameters()).shape


@everywhere
@pytest.mark.parametrize(
    ("params", "got"),
    [
        ([torch.ones(3, dtype=torch.long)], "floating-point parameters, got torch.int64"),
        ([torch.ones(3) > 0], "floating-point parameters, got torch.bool"),
        ([torch.ones(3) * 1j], "floating-point parameters, got torch.complex64"),
        ([PARAMS[0], "bias"], "tensors as parameters, got str at position 1"),
        ([*MODEL.named_parameters(), 1], "tensors as parameters, got tuple at position 0"),
        (PARAMS[0], r"list or dict of parameters, got one tensor: \[p\]"),
    ],
    ids=["integer", "bool", "complex", "name", "named_parameters", "tensor"],
)
def test_parameters_of_a_wrong_kind(build: Build, params: Any, got: str) -> None:
    with pytest.raises(TypeError, match=got):
        build(model_func=lambda X: X, params=params)


@everywhere
def test_parameters_on_two_devices(build: Build) -> None:
    params = [PARAMS[0], torch.zeros(2, device="meta")]
    with pytest.raises(ValueError, match=r"on one device, got cpu and meta"):
        build(model_func=lambda X: X, params=params)


@everywhere
@pytest.mark.parametrize("model", ["net", None, 3])
def test_model_that_is_no_callable(build: Build, model: Any) -> None:
    message = f"module or a callable as model, got {type(model).__name__}"
    with pytest.raises(TypeError, match=message):
        build(model_func=model)


@on_jacobians
def test_jacobian_of_several_tensors(build: Build) -> None:
    model = Waves(2, (C,), link=lambda t: (t, t))
    message = r"predicts one tensor, got tuple.*Wrap it"
    with pytest.raises(TypeError, match=message):
        build(model_func=model, params=list(model.parameters()))


def test_prediction_without_floating_point() -> None:
    model = Waves(2, (C,), link=lambda t: (t > 0).long())
    with pytest.raises(TypeError, match=r"prediction of floating-point tensors, got"):
        GGNLinearOperator(
            model,
            lambda p, y: y.sum(),
            list(model.parameters()),
            DATA,
            reduction="sum",
        )


# ----------------------------------------------------------------------- options


@on_curvature
@pytest.mark.parametrize("sizes", [[1], [3], [1, 2], [2, 0], [3, -1], [1.0, 1.0], []])
def test_bad_block_sizes(build: Build, sizes: list[Any]) -> None:
    message = r"block_sizes as positive integers that sum to.*parameters, 2, got \["
    with pytest.raises(ValueError, match=message):
        build(block_sizes=sizes)


@on_curvature
@pytest.mark.parametrize("sizes", [2, "ab"])
def test_block_sizes_of_a_wrong_kind(build: Build, sizes: Any) -> None:
    with pytest.raises(ValueError, match=r"block_sizes as positive integers"):
        build(block_sizes=sizes)


@everywhere
@pytest.mark.parametrize("size", [0, -1, 2.0, "all", True])
def test_bad_chunk_size(build: Build, size: Any) -> None:
    message = f"chunk_size as a positive integer, 'auto', or None.*got {size!r}"
    with pytest.raises(ValueError, match=message):
        build(chunk_size=size)


@everywhere
@pytest.mark.parametrize("way", ["jax", None, "torch.func"])
def test_bad_differentiation(build: Build, way: Any) -> None:
    with pytest.raises(ValueError, match=f"'backpack' or 'differences', got {way!r}"):
        build(differentiation=way)


@everywhere
def test_func_with_a_closure(build: Build) -> None:
    message = r"differentiation='func' needs a module, or a dict.*got a closure"
    with pytest.raises(ValueError, match=message):
        build(model_func=lambda X: MODEL(X), differentiation="func")


# ----------------------------------------------------------------------- vectors


@everywhere
@pytest.mark.parametrize("extra", [-1, 1])
def test_vector_of_wrong_length(build: Build, extra: int) -> None:
    A = build()
    M, n = A.shape
    wrong = torch.zeros(n + extra, dtype=torch.float64)
    message = rf"shape \({n},\) or \({n}, K\), got \({n + extra},\)"
    with pytest.raises(ValueError, match=message):
        A @ wrong
    wrong = torch.zeros(M + extra, dtype=torch.float64)
    message = rf"shape \({M},\) or \(K, {M}\), got \({M + extra},\)"
    with pytest.raises(ValueError, match=message):
        wrong @ A


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vector_of_wrong_dtype(build: Build, dtype: torch.dtype) -> None:
    A = build()
    message = rf"dtype torch.float64, got {dtype}.*\.to\(torch.float64\)"
    with pytest.raises(TypeError, match=message):
        A @ torch.zeros(A.shape[1], dtype=dtype)


@everywhere
def test_complex_vector_of_wrong_precision(build: Build) -> None:
    A = build()
    message = r"Expected torch.complex128, got torch.complex64"
    with pytest.raises(TypeError, match=message):
        A @ torch.zeros(A.shape[1], dtype=torch.complex64)


@everywhere
def test_vector_on_wrong_device(build: Build) -> None:
    A = build()
    wrong = torch.zeros(A.shape[1], dtype=torch.float64, device="meta")
    with pytest.raises(ValueError, match=r"vector on cpu, got one on meta.*\.to\('cpu'\)"):
        A @ wrong


@everywhere
@pytest.mark.parametrize("x", [3.0, "v", None, numpy.zeros(3)], ids=type)
def test_vector_of_wrong_kind(build: Build, x: Any) -> None:
    message = f"tensor, a list or tuple of tensors.*got {type(x).__name__}"
    with pytest.raises(TypeError, match=message):
        build() @ x


@on_curvature
def test_blocks_that_do_not_fit(build: Build) -> None:
    A = build()
    w, b = (torch.zeros_like(p) for p in PARAMS)
    shapes = r"\[\(2, 3\), \(3,\)\]"
    with pytest.raises(ValueError, match=rf"2 blocks of shapes {shapes}, got 1"):
        A @ [w]
    with pytest.raises(ValueError, match=rf"shapes {shapes}.*trailing K.*got \[\(3,\)"):
        A @ [b, w]
    with pytest.raises(
        TypeError, match=r"blocks that are tensors, got float at position 1"
    ):
        A @ [w, 1.0]
    with pytest.raises(ValueError, match=r"keys \['weight', 'bias'\], got \['weight'\]"):
        A @ {"weight": w}
    with pytest.raises(ValueError, match=r"not known: \['gain'\]"):
        A @ {"weight": w, "bias": b, "gain": b}
