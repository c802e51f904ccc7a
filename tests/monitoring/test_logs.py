"""Records in a CSV file and in TensorBoard."""

from __future__ import annotations

import sys

import pytest
import torch

import curvop
from curvop import CurvatureMonitor
from curvop.monitoring import CSVLog, TensorBoardLog, read_csv
from tests.monitoring.problems import training


def run(t, **options):
    monitor = CurvatureMonitor(*t.problem, k=2, every=2, optimizer=t.optimizer, **options)
    for _ in range(4):
        t.descend()
        monitor.step()
    return monitor


@pytest.mark.parametrize(
    "options", [{}, {"num_probes": 0}, {"preconditioned": True}], ids=str
)
def test_csv_is_read_back_bit_for_bit(options, tmp_path):
    path = tmp_path / "curvature.csv"
    kind = torch.optim.Adam if "preconditioned" in options else torch.optim.SGD
    monitor = run(training(kind), logs=[CSVLog(path)], **options)
    assert read_csv(path) == monitor.history
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


def test_csv_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "curvature.csv"
    first, second = (run(training(), logs=[CSVLog(path)]) for _ in range(2))
    assert read_csv(path) == first.history + second.history


def test_csv_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "curvature.csv"
    path.write_text("step,loss\n1,2.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has other columns than the record"):
        run(training(), logs=[CSVLog(path)])


def test_logs_see_records_as_they_are_made():
    seen = []
    monitor = run(training(), logs=[seen.append])
    assert tuple(seen) == monitor.history
    scalars = seen[0].scalars()
    assert scalars["eigenvalue_2"] == seen[0].values[1]
    assert "status" not in scalars
    assert "preconditioned_sharpness" not in scalars


class Writer:
    """What TensorBoardLog needs of a SummaryWriter."""

    def __init__(self):
        self.scalars, self.flushed = [], 0

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        self.flushed += 1


def test_tensorboard_writer_of_ones_own():
    writer = Writer()
    monitor = run(training(), logs=[TensorBoardLog(writer)])
    assert ("curvature/loss", monitor.history[1].loss, 2) in writer.scalars
    assert {step for _, _, step in writer.scalars} == {0, 2, 4}
    assert writer.flushed == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_written(tmp_path):
    accumulation = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    monitor = run(training(), logs=[TensorBoardLog(tmp_path)])
    events = accumulation.EventAccumulator(str(tmp_path)).Reload()
    written = events.Scalars("curvature/eigenvalue_1")
    assert [e.step for e in written] == [r.step for r in monitor.history]
    values = [r.sharpness for r in monitor.history]
    assert [e.value for e in written] == pytest.approx(values, rel=1e-6)


def test_says_how_to_install_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "curvop\[tensorboard\]"'):
        TensorBoardLog(tmp_path)


def test_history_is_drawn():
    import matplotlib

    matplotlib.use("Agg")
    t = training(torch.optim.Adam)
    plain = curvop.plot.monitor(run(training()).history)
    scaled = curvop.plot.monitor(run(t, preconditioned=True).history)
    assert "2/η" in [text.get_text() for text in plain.get_legend().get_texts()]
    assert "P⁻¹H" in scaled.get_ylabel()
    matplotlib.pyplot.close("all")
