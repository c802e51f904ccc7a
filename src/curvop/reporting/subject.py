"""What a report is of: in words, in hashes, and what its results depend on."""

from __future__ import annotations

from typing import Any

import torch

from curvop._version import __version__
from curvop.curvature import CurvatureLinearOperator
from curvop.monitoring import Preconditioner
from curvop.reporting.findings import Settings
from curvop.reporting.fingerprint import hash_of_data, hash_of_parameters
from curvop.reporting.target import Target

LAYOUT = 1  # of what sections keep; raise it where that changes


def described(target: Target, op: CurvatureLinearOperator, loss: float) -> dict[str, Any]:
    """Model, loss, parameters and data, as the record has them."""
    of_data, num_data, num_batches = hash_of_data(op)
    names = op.domain_names or tuple(map(str, range(len(op.domain))))
    return {
        "model": type(target.model).__name__,
        "loss_func": _name(target.loss),
        "loss": loss,
        "parameters": op.shape[0],
        "blocks": {n: list(shape) for n, shape in zip(names, op.domain, strict=True)},
        "data": num_data,
        "batches": num_batches,
        "hash_of_parameters": hash_of_parameters(op, target.model),
        "hash_of_data": of_data,
        "dtype": str(op.dtype).removeprefix("torch."),
        "device": str(op.device),
    }


def identity(
    about: dict[str, Any], settings: Settings, given: Preconditioner | None
) -> dict[str, Any]:
    """What the results of a run depend on, besides the matrix: for its checkpoint."""
    return {
        "version": f"{__version__}, layout {LAYOUT}",
        "parameters": about["hash_of_parameters"],
        "data": about["hash_of_data"],
        "preconditioner": None if given is None else given.mark(),
        "dtype": about["dtype"],
        **{name: getattr(settings, name) for name in ("curvature", "k", "tol", "seed")},
    }


def _name(loss: Any) -> str:
    if isinstance(loss, torch.nn.Module):
        return repr(loss)
    return getattr(loss, "__name__", type(loss).__name__)
