"""Reports of models of all kinds, against dense matrices."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvop import assume_psd, report
from curvop.reporting import figures, sections
from curvop.reporting.computation import find
from curvop.reporting.findings import Settings
from curvop.reporting.page import page
from curvop.reporting.target import returned
from tests.reporting import targets

NAMES = [
    "plain", "as_dict", "batch_norm_eval", "attention", "dict_inputs", "frozen_and_tied",
    "one_batch", "tiny", "one_parameter", "zero_gradient", "negative", "shuffled",
]  # fmt: skip


def silent(message):
    pass


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    """No number of these tests depends on the density, nor on pictures."""
    monkeypatch.setattr(sections, "PROBES", 2)
    monkeypatch.setattr(sections, "STEPS", 8)
    monkeypatch.setattr(figures, "picture", lambda *args, **options: "<svg></svg>")


def made(name, folder, **options):
    """The target and the record, without the page."""
    about = returned(getattr(targets, name)(), name)
    settings = Settings(title=name, **options)
    findings = find(about, settings, folder, time.monotonic(), silent)
    return about, SimpleNamespace(findings=findings, record=findings.to_dict())


def dense_hessian(about):
    """By differentiating twice, over all data at once where no loader is needed."""
    params = about.tensors
    for p in params:
        p.requires_grad_(True)
    total, n = 0.0, 0
    for X, y in about.data:
        is_module = isinstance(about.model, torch.nn.Module)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has one derivative only
            f = about.model(X) if is_module else about.model(about.params, X)
        total = total + len(y) * about.loss(f, y)
        n += len(y)
    loss = total / n
    gradient = torch.autograd.grad(loss, params, create_graph=True)
    g = torch.cat([part.reshape(-1) for part in gradient])
    rows = [
        torch.cat([
            part.reshape(-1)
            for part in torch.autograd.grad(
                x, params, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        ])
        for x in g
    ]  # fmt: skip
    return loss.item(), g.detach(), torch.stack(rows)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_dense_matrix(name, tmp_path):
    about, found = made(name, tmp_path, k=4, tol=1e-9)
    loss, g, H = dense_hessian(about)
    assert found.record["status"] == "complete"
    assert found.record["errors"] == {}
    problem, got = found.record["problem"], found.record["sections"]
    P = len(H)
    assert problem["parameters"] == P
    assert problem["loss"] == pytest.approx(loss, rel=1e-12)
    values, vectors = torch.linalg.eigh(H)
    scale = float(values.abs().max())

    def close(listed, truth):
        found = torch.tensor(listed, dtype=torch.float64)
        assert found.shape == truth.shape
        assert (found - truth).abs().max() <= 1e-8 * scale

    k = min(4, P)
    close(got["top"]["values"], values.flip(0)[:k])
    close(got["bottom"]["values"], values.flip(0)[-k:])
    assert max(got["top"]["residuals"]) <= 1e-8 * scale
    total, error = got["traces"]["trace"]
    assert abs(total - float(H.trace())) <= 4 * error + 1e-8 * scale
    sizes = [torch.Size(shape).numel() for shape in problem["blocks"].values()]
    blocks = H.diagonal().split(sizes)
    for name, block in zip(problem["blocks"], blocks, strict=True):
        value, error = got["traces"]["blocks"][name]
        assert abs(value - float(block.sum())) <= 4 * error + 1e-8 * scale
    norm = float(g.norm())
    assert got["gradient"]["norm"] == pytest.approx(norm, rel=1e-9, abs=1e-14)
    if norm > 1e-10:
        along = float(g @ H @ g) / norm**2
        assert abs(got["gradient"]["curvature_along"] - along) <= 1e-9 * scale
        shares = got["top"]["gradient_shares"]
        gap = float(values.diff().abs()[-k:].min()) if k < P else 0.0
        if gap > 1e-3 * scale:  # else the vectors are not unique
            true = ((vectors.flip(1)[:, :k].T @ g) / norm).square().tolist()
            assert shares == pytest.approx(true, abs=1e-6)
    json.dumps(found.record, allow_nan=False)


def test_model_is_left_as_found(tmp_path):
    model, loss, params, data = targets.batch_norm_train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    params = list(params)
    found = report(model, loss, params, data, out=tmp_path, k=2, dtype=torch.float32)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float64 for p in params)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.record["problem"]["dtype"] == "float32"
    (note,) = found.record["notes"]
    assert "model.eval()" in note
    assert "BatchNorm2d" in found.html.read_text()


def test_dropout_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(RuntimeError, match=r"dropout.*model\.eval\(\)"):
        made("dropout", tmp_path)


def test_half_precision_is_promoted(tmp_path):
    _, found = made("half_precision", tmp_path, k=2)
    _, same = made("single_precision", tmp_path / "single", k=2)
    assert found.record["problem"]["dtype"] == "float32"
    assert "half precision" in found.record["notes"][0]
    a, b = (r.record["sections"]["top"]["values"] for r in (found, same))
    assert a == pytest.approx(b, rel=0.05)  # parameters are rounded to 8 bits


def test_double_precision_on_request(tmp_path):
    _, found = made("single_precision", tmp_path, k=2, dtype=torch.float64, tol=1e-9)
    _, same = made("plain", tmp_path / "plain", k=2, tol=1e-9)
    a, b = (r.record["sections"]["top"]["values"] for r in (found, same))
    assert a == pytest.approx(b, rel=1e-5)  # parameters are rounded to 24 bits
    assert found.record["problem"]["dtype"] == "float64"


def test_sharpness_under_adam(tmp_path):
    about, found = made("trained", tmp_path, k=2, tol=1e-9)
    _, _, H = dense_hessian(about)
    state = [about.optimizer.state[p] for p in about.tensors]
    v = torch.cat(
        [s["exp_avg_sq"].flatten() / (1 - 0.999 ** float(s["step"])) for s in state]
    )
    d = v.sqrt() + 1e-8
    S = H / d.sqrt() / d.sqrt()[:, None]
    true = float(torch.linalg.eigvalsh(S)[-1])
    assert found.record["sections"]["sharpness"]["values"][0] == pytest.approx(
        true, rel=1e-7
    )
    assert found.record["preconditioner"]["threshold"] == pytest.approx(38 / 1e-2)


def test_sharpness_under_an_operator(tmp_path, monkeypatch):
    plain = targets.plain
    B = torch.randn(123, 123, generator=targets.seeded(), dtype=torch.float64)
    D = B @ B.T / 123 + torch.eye(123)
    P = assume_psd((D + D.T) / 2)
    monkeypatch.setattr(targets, "plain", lambda: (*plain(), P))
    about, found = made("plain", tmp_path, k=2, tol=1e-9)
    _, _, H = dense_hessian(about)
    true = float(torch.linalg.eigvals(torch.linalg.solve(P.to_dense(), H)).real.max())
    (value,) = found.record["sections"]["sharpness"]["values"]
    assert value == pytest.approx(true, rel=1e-7)
    assert "threshold" not in page(found.findings)


def test_gauss_newton(tmp_path):
    about, found = made("plain", tmp_path, k=3, tol=1e-9, curvature="ggn")
    X = torch.cat([X for X, _ in about.data])

    def row(f):
        parts = torch.autograd.grad(f, about.tensors, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    J = torch.stack([torch.stack([row(c) for c in f]) for f in about.model(X)])  # [N, C, P]
    p = about.model(X).softmax(1).detach()
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    G = torch.einsum("ncp,ncd,ndq->pq", J, S, J) / len(X)
    true = torch.linalg.eigvalsh(G).flip(0)[:3]
    got = torch.tensor(found.record["sections"]["top"]["values"], dtype=torch.float64)
    assert (got - true).abs().max() <= 1e-8 * float(true.max())
    assert "dimension" not in found.record["sections"]  # that of the density serves
    assert found.record["sections"]["bottom"]["values"][-1] >= -1e-9


def test_negative_curvature_at_the_top(tmp_path):
    _, found = made("negative", tmp_path, k=3)
    assert found.record["sections"]["top"]["values"][0] < 0
    html = page(found.findings)
    assert "no curvature is positive" in html
    assert "the effective dimension is zero" in html


def test_zero_gradient_is_said(tmp_path):
    _, found = made("zero_gradient", tmp_path, k=3)
    assert found.record["sections"]["gradient"]["norm"] == 0
    assert (
        "gradient_shares" not in found.record["sections"]["top"]
        or not found.record["sections"]["top"]["gradient_shares"]
    )
    assert "The gradient is zero" in page(found.findings)
