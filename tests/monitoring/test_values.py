"""What is measured, against dense matrices."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from curvop import CurvatureMonitor, GGNLinearOperator
from tests.monitoring.problems import training


def test_measurements_are_those_of_the_dense_hessian():
    t = training(lr=0.5)
    monitor = CurvatureMonitor(*t.problem, k=2, tol=1e-8, every=3, optimizer=t.optimizer)
    for step in range(1, 10):
        t.descend()
        record = monitor.step()
        assert (record is not None) == (step % 3 == 0)
        if record is None:
            continue
        H, g = t.hessian(), t.gradient()
        values, Q = torch.linalg.eigh(H)
        loss = t.loss_func(t.model(t.X), t.y).item()
        along = float((Q[:, -2:].T @ g).square().sum() / g.square().sum())
        assert record.status == "converged"
        assert record.values == pytest.approx(values[-2:].flip(0).tolist(), rel=1e-8)
        assert max(record.residuals) <= 1e-7 * record.sharpness
        assert record.loss == pytest.approx(loss, rel=1e-10)
        assert record.gradient_norm == pytest.approx(float(g.norm()), rel=1e-10)
        assert record.alignment == pytest.approx(along, rel=1e-5)
        assert abs(record.trace - float(H.trace())) < 5 * record.trace_error
        assert (record.step, record.learning_rate, record.threshold) == (step, 0.5, 4.0)
    assert [r.step for r in monitor.history] == [0, 3, 6, 9]


def test_trace_is_exact_where_only_tracked_eigenvalues_are_not_zero():
    X = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    data = [(X, torch.zeros(2, 1, dtype=torch.float64))]
    loss_func = nn.MSELoss(reduction="sum")
    monitor = CurvatureMonitor(model, loss_func, [model.weight], data, k=2, tol=1e-10)
    (record,) = monitor.history
    assert record.values == pytest.approx((18.0, 8.0))
    assert record.trace == pytest.approx(26.0)


def test_preconditioned_sharpness_is_that_of_the_dense_pencil():
    t = training(torch.optim.Adam, lr=1e-2, betas=(0.8, 0.99))
    monitor = CurvatureMonitor(
        *t.problem, tol=1e-8, every=4, optimizer=t.optimizer, preconditioned=True
    )
    assert monitor.history[0].preconditioned_sharpness is None  # Adam has no P yet
    for _ in range(8):
        t.descend()
        monitor.step()
    record = monitor.history[-1]
    parts = []
    for p in t.params:
        state = t.optimizer.state[p]
        second = state["exp_avg_sq"] / (1 - 0.99**8)
        parts.append(((1 - 0.8**8) * (second.sqrt() + 1e-8)).reshape(-1))
    P = torch.diag(torch.cat(parts))
    expected = torch.linalg.eigvals(torch.linalg.solve(P, t.hessian())).real.max()
    assert record.preconditioned_sharpness == pytest.approx(float(expected), rel=1e-7)
    assert record.preconditioned_residual <= 1e-7 * record.preconditioned_sharpness
    assert record.threshold == pytest.approx(3.6 / 0.2 / 1e-2)


def test_an_eigenvalue_that_overtakes_is_noticed():
    """The tracked vector stays an exact eigenvector, but no longer that of the largest."""
    w = torch.ones(12, dtype=torch.float64, requires_grad=True)
    curvature = torch.linspace(1, 2, 12, dtype=torch.float64)
    data = [(curvature, torch.zeros(12, dtype=torch.float64))]

    def loss(prediction, _):
        return prediction.sum() / 2

    monitor = CurvatureMonitor(
        lambda c: c * w**2, partial(loss), [w], data, every=1,
        matrix=partial(_hessian, reduction="sum"),
    )  # fmt: skip
    assert monitor.history[-1].sharpness == pytest.approx(2, abs=1e-3)
    curvature[3] = 5.0
    assert monitor.step().sharpness == pytest.approx(5, abs=1e-3)


def _hessian(*args, **options):
    from curvop import HessianLinearOperator

    return HessianLinearOperator(*args, **options)


def test_warm_start_saves_products():
    t = training()
    monitor = CurvatureMonitor(*t.problem, k=1, tol=1e-6, every=1, num_probes=0)
    t.optimizer.param_groups[0]["lr"] = 1e-6
    t.descend()
    monitor.step()
    cold, warm = (r.num_matvecs for r in monitor.history)
    assert warm < cold
    assert monitor.history[0].trace is None


def test_another_matrix():
    t = training()
    monitor = CurvatureMonitor(*t.problem, matrix=GGNLinearOperator, tol=1e-8)
    G = GGNLinearOperator(*t.problem).to_dense()
    largest = float(torch.linalg.eigvalsh(G)[-1])
    assert monitor.history[0].sharpness == pytest.approx(largest, rel=1e-8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_measures_where_gradients_are_switched_off(mode):
    t = training()
    monitor = CurvatureMonitor(*t.problem, every=1)
    with mode():
        record = monitor.measure()
    assert record.sharpness == pytest.approx(monitor.history[0].sharpness)
    assert record.gradient_norm == monitor.history[0].gradient_norm


def test_measures_without_dropout_and_with_running_statistics():
    t = training()
    layers = [t.model[0], nn.BatchNorm1d(5).double(), nn.Dropout(0.5), *t.model[1:]]
    model = nn.Sequential(*layers)
    params = list(model.parameters())
    (record,) = CurvatureMonitor(model, t.loss_func, params, t.data).history
    model.eval()
    assert record.loss == pytest.approx(t.loss_func(model(t.X), t.y).item(), rel=1e-12)
