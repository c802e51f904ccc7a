"""The monitor: when to measure the curvature while a model is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from curvop import arguments
from curvop.curvature import CurvatureLinearOperator, HessianLinearOperator
from curvop.generators import source
from curvop.monitoring import stability
from curvop.monitoring.measurement import Measurement, Plan, descending, measure
from curvop.monitoring.overhead import ALLOWANCE, TimeAccount
from curvop.monitoring.record import CurvatureRecord, not_finite
from curvop.risk import modules_in

Log = Callable[[CurvatureRecord], None]


@final
class CurvatureMonitor:
    r"""Tracks the curvature of a model while it is trained.

    Each measurement has the largest eigenvalues ``λ`` with residuals, warm-started from
    the last step's vectors ``Q``; the trace with its standard error; and the share of the
    gradient in the top eigenspace, ``‖Qᵀ g‖² / ‖g‖²``. The first is made on construction,
    to show the start, followed by one that shows what a measurement costs. From then on,
    the monitor measures when enough training time has passed for its share.

    Training is the same, bit for bit, with and without: parameters, ``.grad``, buffers,
    modes and generators are not changed.

    Args:
        model_func: The model, as :class:`HessianLinearOperator` takes it.
        loss_func: The loss.
        params: The parameters.
        data: The data of the risk whose curvature is measured: the training data, or as
            much of it as time allows; a loader of its own if its workers persist.
        k: Number of eigenvalues.
        matrix: Makes the operator of the four arguments above; with options by
            ``functools.partial(GGNLinearOperator, reduction="mean")``.
        optimizer: For the learning rate and the stability threshold.
        preconditioned: Whether to compute the sharpness under the preconditioner of
            ``optimizer``, torch's Adam or AdamW.
        num_probes: Products for the trace; zero for none.
        tol: Largest residual of an eigenvalue, relative to the largest eigenvalue.
        maxiter: Most products for the eigenvalues of one measurement.
        max_overhead: Share of the training time that measurements may take. A measurement
            is made when twice the time of the last one is available, and ends in time.
        every: Measure at each such step instead, without a limit on the time.
        eval_mode: Whether to measure with all modules in eval mode: without dropout, and
            with running statistics.
        generator: Source of random vectors. By default one with a fixed seed; no global
            generator is touched.
        logs: Called with each record, as :class:`curvop.monitoring.CSVLog` is.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If something does not fit.
        NonDeterministicError: If two passes over the data differ.

    >>> model = torch.nn.Linear(3, 1)
    >>> X, y = torch.randn(20, 3), torch.randn(20, 1)
    >>> loss_func, params = torch.nn.MSELoss(), list(model.parameters())
    >>> optimizer = torch.optim.SGD(params, lr=0.1)
    >>> monitor = CurvatureMonitor(
    ...     model, loss_func, params, [(X, y)], optimizer=optimizer, every=5
    ... )
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     loss_func(model(X), y).backward()
    ...     optimizer.step()
    ...     record = monitor.step()
    >>> [record.step for record in monitor.history]
    [0, 5, 10]
    >>> monitor.history[0].threshold
    20.0
    """

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[[Any, Any], Tensor],
        params: Iterable[Tensor] | Mapping[str, Tensor],
        data: Iterable[tuple[Any, Any]],
        *,
        k: int = 1,
        matrix: Callable[..., CurvatureLinearOperator] = HessianLinearOperator,
        optimizer: Optimizer | None = None,
        preconditioned: bool = False,
        num_probes: int = 8,
        tol: float = 1e-3,
        maxiter: int = 100,
        max_overhead: float = 0.1,
        every: int | None = None,
        eval_mode: bool = True,
        generator: Generator | None = None,
        logs: Iterable[Log] = (),
    ) -> None:
        k = arguments.integer(k, "k", 1)
        num_probes = arguments.integer(num_probes, "num_probes", 0)
        maxiter = arguments.integer(maxiter, "maxiter", 3 * k)
        self._every = None if every is None else arguments.integer(every, "every", 1)
        if not 0 < max_overhead < math.inf:
            raise ValueError(f"Expected a positive max_overhead, got {max_overhead}.")
        if num_probes == 1:
            raise ValueError("Expected num_probes of at least 2, or 0 for none, got 1.")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"Expected a torch optimizer, got {type(optimizer).__name__}.")
        if preconditioned:
            stability.check_preconditioned(optimizer)
        if isinstance(data, DataLoader) and data.persistent_workers:
            raise ValueError(
                "Expected a loader of its own, got one with persistent workers: to pass "
                "over it would restart the pass of the training loop."
            )
        begin = perf_counter()
        self._modules = modules_in(model_func) if eval_mode else ()
        with evaluation(self._modules):
            H = matrix(model_func, loss_func, params, data)
        if not isinstance(H, CurvatureLinearOperator):
            raise TypeError(
                "Expected matrix to make a curvature operator, such as "
                f"HessianLinearOperator, got {type(H).__name__}."
            )
        self._H = H
        self._plan = Plan(k, num_probes, arguments.tolerance(tol), maxiter)
        self._optimizer = optimizer
        self._preconditioned = preconditioned
        self._generator = source(generator, seed=0)
        self._logs = tuple(logs)
        self._history: list[CurvatureRecord] = []
        self._last: Measurement | None = None
        self._step = 0
        self._account = TimeAccount(max_overhead)
        self._call: tuple[float, float] | None = None  # when the last one began and ended
        self._measure(math.inf)
        seconds = math.inf
        if every is None:  # once more, from a warm start as those to come
            _, seconds = self._look(math.inf)
        self._account, self._call = TimeAccount(max_overhead, last=seconds), None
        self._setup = perf_counter() - begin

    # ------------------------------------------------------------------ what it tells

    @property
    def history(self) -> tuple[CurvatureRecord, ...]:
        """All measurements so far."""
        return tuple(self._history)

    @property
    def overhead(self) -> float:
        """Time in measurements since construction, as a share of that in training."""
        return self._account.overhead

    @property
    def setup_seconds(self) -> float:
        """Time that construction took, the first measurement included."""
        return self._setup

    # ------------------------------------------------------------------- what it does

    def step(self, step: int | None = None) -> CurvatureRecord | None:
        """Call it after each optimizer step; measures if it is time to.

        The time between two calls counts as training.

        Args:
            step: Number of steps so far; by default that of calls.

        Returns:
            The record, if a measurement was made.

        Raises:
            KeyboardInterrupt: On Ctrl-C.
        """
        begin = perf_counter()
        self._step = self._step + 1 if step is None else step
        self._book(begin)
        if self._is_due():
            return self._measure(ALLOWANCE if self._every is None else math.inf)
        self._call = begin, perf_counter()
        return None

    def measure(self) -> CurvatureRecord:
        """Measure now, without a limit on the time.

        Raises:
            KeyboardInterrupt: On Ctrl-C.
        """
        self._book(perf_counter())
        return self._measure(math.inf)

    def _is_due(self) -> bool:
        if self._every is not None:
            return self._step % self._every == 0
        last = self._last
        # the first preconditioned sharpness comes on top of what the last one took
        is_new = self._preconditioned and last is not None and last.preconditioned is None
        return self._account.covers(2 if is_new else 1)

    def _book(self, now: float) -> None:
        """Book the last call, and as training the time since."""
        if self._call is not None:
            begin, end = self._call
            self._account = self._account.book(training=now - end, measuring=end - begin)

    def _measure(self, allowance: float) -> CurvatureRecord:
        """Look, write it down, and keep the time."""
        begin = perf_counter()
        if self._H.device.type == "cuda":  # what it has still to do is training
            torch.cuda.synchronize(self._H.device)
            self._call = begin, begin
            begin = perf_counter()
            self._book(begin)
        self._call = None  # an interrupt stops the clock
        found, seconds = self._look(allowance)
        record = self._record(found, seconds)
        self._history.append(record)
        for log in self._logs:
            log(record)
        end = perf_counter()
        self._account = self._account.book(training=0.0, measuring=end - begin)
        if found is not None:
            self._account = self._account.expect(end - begin)
        self._call = end, end
        return record

    def _look(self, allowance: float) -> tuple[Measurement | None, float]:
        """A measurement, and the seconds that it took."""
        begin = perf_counter()
        params = self._H.risk.parameters.tensors
        P = None
        if self._preconditioned and self._optimizer is not None:
            P = stability.preconditioner(self._optimizer, params)
        with evaluation(self._modules):
            found = measure(
                self._H,
                self._plan,
                self._generator,
                previous=self._last,
                P=P,
                allowance=allowance,
            )
        self._last = found or self._last
        return found, perf_counter() - begin

    def _record(self, found: Measurement | None, seconds: float) -> CurvatureRecord:
        limit = stability.preconditioned_threshold if self._preconditioned else None
        when: dict[str, Any] = {
            "step": self._step,
            "training_seconds": self._account.training,
            "seconds": seconds,
            "learning_rate": stability.learning_rate(self._optimizer),
            "threshold": (limit or stability.threshold)(self._optimizer),
        }
        if found is None:
            return not_finite(self._plan.k, **when)
        trace, scaled = found.trace, found.preconditioned
        return CurvatureRecord(
            **when,
            loss=found.loss,
            gradient_norm=found.gradient_norm,
            alignment=found.alignment,
            values=descending(found.pairs.values),
            residuals=descending(found.pairs.residuals),
            status=found.pairs.status,
            trace=None if trace is None else trace.value,
            trace_error=None if trace is None else trace.standard_error,
            num_matvecs=found.num_matvecs,
            preconditioned_sharpness=None if scaled is None else float(scaled.values[0]),
            preconditioned_residual=None if scaled is None else float(scaled.residuals[0]),
        )


@contextmanager
def evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Set the flag of each submodule, and give each its own back.

    Not by ``train()`` and ``eval()``, which modules override to keep parts as they are.
    """
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for m, _ in flags:
            m.training = False
        yield
    finally:
        for m, training in flags:
            m.training = training
