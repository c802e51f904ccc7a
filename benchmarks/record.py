"""The record: rows of measurements, and the runs in which they were made."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from peers import CONTENDERS
from writing import processor

Record = dict[str, list[dict[str, Any]]]
FILE = "speed.json"

# Rows that agree in these measure the same: the newer one stays.
KEY = ("network", "device", "dtype", "matrix", "what", "columns", "clock")


def load(folder: Path) -> Record:
    """What is there already."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {"runs": [], "rows": []}


def begin(record: Record) -> int:
    """Note this run; the number that its rows carry."""
    packages = dict.fromkeys(["torch", "scipy", *(c.package for c in CONTENDERS)])
    run = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }
    if run not in record["runs"]:
        record["runs"].append(run)
    return record["runs"].index(run)


def add(record: Record, row: dict[str, Any]) -> None:
    """Put a row in the place of an older one, or at the end."""

    def key(r: dict[str, Any]) -> list[Any]:
        return [r[name] for name in KEY]

    old = [i for i, r in enumerate(record["rows"]) if key(r) == key(row)]
    if old:
        record["rows"][old[0]] = row
    else:
        record["rows"].append(row)


def save(record: Record, folder: Path) -> None:
    """Write the record, with the runs that still have rows."""
    used = sorted({r["run"] for r in record["rows"]})
    number = {run: i for i, run in enumerate(used)}
    kept = {
        "runs": [record["runs"][i] for i in used],
        "rows": [r | {"run": number[r["run"]]} for r in record["rows"]],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(_rounded(kept), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Four digits are more than can be repeated."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
