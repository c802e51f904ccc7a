"""The run record: all numbers of a report, as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from curvop.reporting.derived import dimensions
from curvop.reporting.findings import Findings
from curvop.reporting.sections import block_estimates

SCHEMA = 1


def record(findings: Findings) -> dict[str, Any]:
    """The findings as what JSON has; what is not known is ``None``."""
    sections = {name: dict(state) for name, state in findings.sections.items()}
    if "traces" in sections:
        traces = sections["traces"]
        names, values, errors = block_estimates(traces)
        for key in ("names", "sum", "sum_of_squared_errors", "rounds"):
            traces.pop(key, None)
        traces["blocks"] = {
            name: [float(value), float(error)]
            for name, value, error in zip(names, values, errors, strict=True)
        }
    if (dimension := dimensions(findings)) is not None:
        sections["effective_dimension"] = asdict(dimension)
    found: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "status": findings.status,
            "settings": asdict(findings.settings),
            "problem": findings.model,
            "preconditioner": findings.preconditioner,
            "sections": sections,
            "errors": findings.errors,
            "notes": findings.notes,
            "runs": findings.runs,
        }
    )
    return found


def text(findings: Findings) -> str:
    """The record, written."""
    return json.dumps(record(findings), indent=1, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Tensors as lists, numbers that are not finite as ``None``, others as words."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return value if isinstance(value, str | int | bool | None) else str(value)
