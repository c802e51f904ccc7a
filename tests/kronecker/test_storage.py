"""Factors on disk, and their moving average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvop.kronecker import EMA, EKFACLinearOperator, KFACLinearOperator
from tests.cases.problem import seeded
from tests.comparing import error, random
from tests.kronecker.test_definition import LABELS, LOSS

both = pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
files = pytest.mark.parametrize("name", ["factors.pt", "factors.safetensors"])


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 2, groups=2), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3)
    )


def problem(dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Any, ...]:
    model, X = seeded(layers, dtype), random(7, 2, 3, seed=seed).to(dtype)
    loss = nn.CrossEntropyLoss(LOSS.weight.to(dtype))
    return model, loss, dict(model.named_parameters()), [(X, LABELS)]


@both
@files
@pytest.mark.parametrize("joint", [False, True])
def test_what_is_saved_is_loaded(kind: Any, name: str, joint: bool, tmp_path: Path) -> None:
    model, loss, params, data = problem()
    K = kind(model, loss, params, data, separate_weight_and_bias=not joint)
    K.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    same = kind.load(tmp_path / name, model, params)
    assert torch.equal(same.to_dense(), K.to_dense())
    assert same.domain_names == K.domain_names
    assert same.block_names == K.block_names
    assert torch.equal(same.inverse(0.1).to_dense(), K.inverse(0.1).to_dense())
    from_list = kind.load(tmp_path / name, model, list(params.values()))
    assert torch.equal(from_list.to_dense(), K.to_dense())


@files
def test_wide_factors_of_a_narrow_model(name: str, tmp_path: Path) -> None:
    args = problem(torch.float32)
    K = KFACLinearOperator(*args, factor_dtype=torch.float64)
    K.save(tmp_path / name)
    same = KFACLinearOperator.load(tmp_path / name, args[0], args[2])
    assert same.dtype == torch.float32
    assert same.trace() == K.trace()


@files
def test_names_shapes_and_kinds_are_checked(name: str, tmp_path: Path) -> None:
    model, loss, params, data = problem()
    path = tmp_path / name
    KFACLinearOperator(model, loss, params, data).save(path)
    with pytest.raises(ValueError, match=r"Expected a file of EKFAC.*got KFAC"):
        EKFACLinearOperator.load(path, model, params)
    with pytest.raises(
        ValueError, match=r"parameters \['3.bias', .*got those of \['0.weight'"
    ):
        KFACLinearOperator.load(path, model, dict(reversed(params.items())))
    with pytest.raises(ValueError, match="parameters"):
        KFACLinearOperator.load(path, model, {"0.weight": params["0.weight"]})
    with pytest.raises(ValueError, match="without names"):
        KFACLinearOperator.load(path, lambda X: model(X), list(params.values()))
    wide = {n: torch.zeros(2, *p.shape) for n, p in params.items()}
    with pytest.raises(ValueError, match="shapes"):
        KFACLinearOperator.load(path, lambda p, X: X, wide)


@files
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    model, _, params, _ = problem()
    path = tmp_path / name
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="Expected a file of Kronecker factors"):
        KFACLinearOperator.load(path, model, params)
    if name.endswith(".pt"):
        torch.save({"weights": torch.ones(2)}, path)
    else:
        from safetensors.torch import save_file

        save_file({"weights": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="Expected a file of Kronecker factors"):
        KFACLinearOperator.load(path, model, params)
    with pytest.raises(FileNotFoundError):
        KFACLinearOperator.load(tmp_path / "no" / name, model, params)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    K = KFACLinearOperator(*problem())
    with pytest.raises(ImportError, match=r'pip install "curvop\[safetensors\]"'):
        K.save(tmp_path / "factors.safetensors")
    assert not list(tmp_path.iterdir())
    K.save(tmp_path / "factors.pt")


# ------------------------------------------------------------------ averages


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.95])
def test_moving_average(decay: float) -> None:
    """``ρ`` is ``1 - 1/k`` at first, then the decay; factors are averaged, not products."""
    each = [KFACLinearOperator(*problem(seed=s)) for s in range(5)]
    ema, right = EMA(decay=decay), None
    for k, K in enumerate(each, 1):
        ema = ema.update(K)
        rho = min(1 - 1 / k, decay)
        now = [(b.left, b.right) for b in K.factors.blocks]
        right = (
            now
            if right is None
            else [
                tuple(
                    None if o is None else rho * o + (1 - rho) * n
                    for o, n in zip(old, new, strict=True)
                )
                for old, new in zip(right, now, strict=True)
            ]
        )
    assert ema.num_updates == 5
    for block, factors in zip(ema.operator.factors.blocks, right, strict=True):
        for got, expected in zip((block.left, block.right), factors, strict=True):
            assert (got is None) == (expected is None)
            assert got is None or error(got, expected) <= 1e-13
    D = ema.operator.to_dense() + 0.1 * torch.eye(
        ema.operator.shape[0], dtype=torch.float64
    )
    assert error(ema.operator.inverse(0.1).to_dense(), D.inverse()) <= 1e-9


def test_averages_are_values() -> None:
    K, L = (KFACLinearOperator(*problem(seed=s)) for s in range(2))
    first = EMA().update(K)
    before = first.operator.to_dense()
    second = first.update(L)
    assert torch.equal(first.operator.to_dense(), before)
    assert first.num_updates == 1
    assert second.num_updates == 2
    assert error(second.operator.to_dense(), before) > 1e-3


def test_what_cannot_be_averaged() -> None:
    args = problem()
    ema = EMA().update(KFACLinearOperator(*args))
    with pytest.raises(ValueError, match="same parameters with the same options"):
        ema.update(KFACLinearOperator(*args, separate_weight_and_bias=False))
    with pytest.raises(TypeError, match="Expected a KFACLinearOperator, got EKFAC"):
        ema.update(EKFACLinearOperator(*args))
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay"):
            EMA(decay=decay)
