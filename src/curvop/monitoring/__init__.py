"""Curvature while a model is trained."""

from curvop.monitoring.adapters import lightning_callback, trainer_callback
from curvop.monitoring.logs import CSVLog, TensorBoardLog, read_csv
from curvop.monitoring.record import CurvatureRecord
from curvop.monitoring.training import CurvatureMonitor

__all__ = [
    "CSVLog",
    "CurvatureMonitor",
    "CurvatureRecord",
    "TensorBoardLog",
    "lightning_callback",
    "read_csv",
    "trainer_callback",
]
