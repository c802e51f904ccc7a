"""Products of patches that are put together equal those that are computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Size, Tensor, nn

from curvop.kronecker import KFACLinearOperator, gram
from curvop.kronecker.gram import PatchGram, repeats
from curvop.layers import Convolution, Window
from tests.comparing import error, random
from tests.kronecker.networks import BY_NAME, parameters
from tests.kronecker.test_definition import LABELS, LOSS, TOLERANCE, batches, expected


def convolution(z: Tensor, shape: Size, **options: Any) -> Convolution:
    """A call of a convolution with this input and shape of the weight."""
    function = (F.conv1d, F.conv2d, F.conv3d)[z.ndim - 3]
    a = Size((len(z), shape[0], *Window.of(shape, options).out(z.shape[2:])))
    return Convolution(function, 0, None, shape, z, z._version, a, options)


def call(size: tuple[int, ...], kernel: tuple[int, ...], **options: Any) -> Convolution:
    """With two channels in each group, of a weight with three outputs in each."""
    G = options.get("groups", 1)
    return convolution(random(3, 2 * G, *size), Size((3 * G, 2, *kernel)), **options)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 6)] * 2),
    kernel=st.tuples(st.integers(2, 4), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.tuples(*[st.integers(1, 2)] * 2),
    padding=st.one_of(
        st.tuples(*[st.integers(0, 3)] * 2), st.sampled_from(["same", "valid"])
    ),
    groups=st.sampled_from([1, 2]),
)
def test_any_window(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    dilation: tuple[int, int],
    padding: Any,
    groups: int,
) -> None:
    options: Any = {
        "stride": (1, 1 if padding == "same" else stride),
        "dilation": dilation,
        "padding": padding,
        "groups": groups,
    }
    window = Window.of(Size((3, 2, *kernel)), options)
    reach = [b * (k - 1) + 1 for k, b in zip(kernel, dilation, strict=True)]
    pairs = zip(size, window.before, window.after, strict=True)
    if any(s + b + a < r for (s, b, a), r in zip(pairs, reach, strict=True)):
        return  # torch refuses
    layer = call(size, kernel, **options)
    sums = PatchGram(layer, like=torch.empty(0, dtype=torch.float64))
    for _ in range(2):
        sums.add(layer, len(layer.z))
    z = layer.inputs(3).flatten(1, 2)
    assert error(sums.unfolded(), 2 * z.mT @ z) <= 1e-13


def test_large_matrices() -> None:
    """With more rows than are added in one piece."""
    z = random(2, 70, 5, 6)
    shape = Size((1, 70, 3, 3))
    layer = convolution(z, shape, padding=1)
    sums = PatchGram(layer, like=torch.empty(0, dtype=torch.float64))
    sums.add(layer, len(layer.z))
    z = layer.inputs(2).flatten(1, 2)
    assert error(sums.unfolded(), z.mT @ z) <= 1e-13


def test_when() -> None:
    wide = call((20, 20), (3, 3), padding=1)
    assert repeats(wide, 3)
    assert not repeats(call((5, 5), (3, 3), padding=1), 3)
    assert not repeats(call((20, 20), (3, 3), padding=1, stride=2), 3)
    assert not repeats(call((40, 40), (1, 3)), 3)


@pytest.mark.parametrize("joint", [False, True], ids=["separate", "joint"])
@pytest.mark.parametrize(
    "name", sorted(n for n in BY_NAME if "conv" in n and "reduce" not in n)
)
def test_networks(name: str, joint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "MANY", 0)
    network, p = BY_NAME[name], parameters(name)
    K = KFACLinearOperator(
        network,
        LOSS,
        p,
        batches(network.X, LABELS),
        separate_weight_and_bias=not joint,
        unsupported="error",
    )
    right = expected(network, p, LOSS, LABELS, joint=joint)
    assert error(K.to_dense(), right) <= TOLERANCE


def test_both_kinds_of_calls() -> None:
    """Images of several sizes: few positions in some batches, many in others."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    y = torch.tensor([0, 1])
    data = [(random(2, 1, s, s), y) for s in (4, 24, 5, 25)]
    loss = nn.CrossEntropyLoss()
    options: Any = {"separate_weight_and_bias": False}
    K = KFACLinearOperator(model, loss, model.parameters(), data, **options)
    total = torch.zeros(10, 10, dtype=torch.float64)
    for X, _ in data:
        z = nn.functional.unfold(X, 3, padding=1).mT.reshape(-1, 9)
        z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
        total += z.T @ z
    assert error(K.factors.blocks[0].right[0], total / total[-1, -1]) <= 1e-13
