"""Curvature while a model is trained."""

from curvop.monitoring.callbacks import lightning_callback, trainer_callback
from curvop.monitoring.logs import CSVLog, TensorBoardLog, read_csv
from curvop.monitoring.monitor import CurvatureMonitor
from curvop.monitoring.preconditioner import Preconditioner, preconditioner_of
from curvop.monitoring.record import CurvatureRecord

__all__ = [
    "CSVLog",
    "CurvatureMonitor",
    "CurvatureRecord",
    "Preconditioner",
    "TensorBoardLog",
    "lightning_callback",
    "preconditioner_of",
    "read_csv",
    "trainer_callback",
]
