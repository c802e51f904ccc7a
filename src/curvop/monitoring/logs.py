"""Where measurements go: a CSV file, TensorBoard."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, final

from curvop.monitoring.record import CurvatureRecord, from_row


@final
class CSVLog:
    """Appends each record to a file, with a header in a new one.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __call__(self, record: CurvatureRecord) -> None:
        """Write one line.

        Raises:
            ValueError: If the file has other columns.
        """
        row = record.row()
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        if not is_new:
            with self._path.open(newline="", encoding="utf-8") as file:
                header = next(csv.reader(file))
            if header != list(row):
                raise ValueError(
                    f"{self._path} has other columns than the record: {header}. Choose "
                    "another file."
                )
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(row)
            writer.writerow(["" if value is None else value for value in row.values()])


def read_csv(path: str | os.PathLike[str]) -> tuple[CurvatureRecord, ...]:
    """The history that :class:`CSVLog` wrote.

    Args:
        path: The file.

    Returns:
        The records, bit for bit.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        return tuple(from_row(row) for row in csv.DictReader(file))


@final
class TensorBoardLog:
    """Writes each number of a record as a scalar ``curvature/name``.

    Args:
        where: A folder, or a ``SummaryWriter``.

    Raises:
        ImportError: If TensorBoard is missing.
    """

    def __init__(self, where: str | os.PathLike[str] | Any) -> None:
        if isinstance(where, str | os.PathLike):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    'TensorBoardLog needs TensorBoard: pip install "curvop[tensorboard]".'
                ) from error
            where = SummaryWriter(os.fspath(where))
        self._writer = where

    def __call__(self, record: CurvatureRecord) -> None:
        """Write the numbers, and make sure that they can be read."""
        for name, value in record.scalars().items():
            if name != "step":
                self._writer.add_scalar(f"curvature/{name}", value, record.step)
        self._writer.flush()
