"""The cap on overhead, with a clock that only moves when it is told to."""

from __future__ import annotations

import pytest
import torch

import curvop.monitoring.monitor
from curvop import CurvatureMonitor
from curvop.monitoring.overhead import RESERVE, TimeAccount
from tests.monitoring.problems import training


class Clock:
    """Seconds that passes over the data and steps of training take."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class TimedData:
    """Batches, each pass over which takes a while."""

    def __init__(self, batches, clock, seconds):
        self.batches, self.clock, self.seconds = batches, clock, seconds

    def __iter__(self):
        self.clock.now += self.seconds
        return iter(self.batches)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(curvop.monitoring.monitor, "perf_counter", clock)
    return clock


def timed(clock, pass_seconds=1.0, make=torch.optim.SGD, **options):
    t = training(make, lr=1e-2)
    data = TimedData(t.data, clock, pass_seconds)
    monitor = CurvatureMonitor(
        t.model, t.loss_func, t.params, data, optimizer=t.optimizer, **options
    )
    return t, monitor


@pytest.mark.parametrize("max_overhead", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("step_seconds", [0.3, 20.0])
def test_overhead_is_below_the_cap_at_every_step(clock, max_overhead, step_seconds):
    t, monitor = timed(clock, max_overhead=max_overhead)
    spent, trained = 0.0, 0.0
    for i in range(int(300 / max_overhead / step_seconds)):
        if i % 100 == 0:
            t.descend()
        clock.now += step_seconds
        before = clock.now
        monitor.step()
        spent += clock.now - before
        trained += step_seconds
        assert spent <= max_overhead * trained
    # the first step is not counted as training: what came before it is not known
    assert monitor.overhead == pytest.approx(spent / (trained - step_seconds))
    assert spent > 0.4 * max_overhead * trained  # and what is allowed is made use of


def test_first_preconditioned_sharpness_is_saved_for(clock):
    t, monitor = timed(clock, make=torch.optim.Adam, preconditioned=True)
    t.descend()
    for _ in range(2000):
        clock.now += 1.0
        monitor.step()
        assert monitor.overhead <= 0.1
    assert monitor.history[-1].preconditioned_sharpness is not None


def test_every_measures_whatever_it_costs(clock):
    t, monitor = timed(clock, every=5)
    for _ in range(10):
        t.descend()
        clock.now += 0.1
        monitor.step()
    assert [r.step for r in monitor.history] == [0, 5, 10]
    assert monitor.overhead > 1


def test_a_measurement_on_request_is_paid_back(clock):
    t, monitor = timed(clock)
    t.descend()
    monitor.step()
    clock.now += 1.0
    record = monitor.measure()
    assert monitor.overhead == pytest.approx(record.seconds / 1.0)
    while monitor.step() is None:
        clock.now += 1.0
        assert clock.now < 1e4
    assert monitor.overhead <= 0.1


def test_an_interrupted_measurement_is_no_training(clock, monkeypatch):
    _, monitor = timed(clock)
    monitor.step()

    def interrupted(*_, **__):
        clock.now += 100.0
        raise KeyboardInterrupt

    monkeypatch.setattr(curvop.monitoring.monitor, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.measure()
    clock.now += 1.0
    monitor.step()
    clock.now += 1.0
    monitor.step()
    assert monitor._account.training == pytest.approx(1.0)


def test_set_up_is_told_apart(clock):
    _, monitor = timed(clock, pass_seconds=2.0)
    first = monitor.history[0]
    assert monitor.setup_seconds > first.seconds > 0
    assert monitor.overhead == 0.0


def test_the_pause_before_the_first_step_is_no_training(clock):
    _, monitor = timed(clock)
    clock.now += 1e6
    assert monitor.step() is None
    assert monitor.overhead == 0.0


def test_step_may_be_told():
    t = training()
    monitor = CurvatureMonitor(*t.problem, every=10)
    assert monitor.step(step=15) is None
    assert monitor.step(step=20).step == 20


def test_account_is_a_value():
    a = TimeAccount(0.1, last=2.0)
    b = a.book(training=20.0 * RESERVE, measuring=0.0)
    assert not a.covers()
    assert b.covers()
    assert not b.covers(2)
    c = b.book(training=0.0, measuring=1.0).expect(0.5)
    assert c.overhead == pytest.approx(1 / (20 * RESERVE))
    assert c.last == 0.5
