"""What a report is of, in words, and in hashes that tell a model from others."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvop._version import __version__
from curvop.curvature import CurvatureLinearOperator
from curvop.inspection import Problem
from curvop.monitoring import Preconditioner
from curvop.reporting.findings import Settings
from curvop.risk import nested

LAYOUT = 1  # of what sections keep; raise it where that changes


def hash_of_parameters(op: CurvatureLinearOperator, model: Any) -> str:
    """SHA-256 of names, types, shapes and bits of the parameters, and of the buffers."""
    digest = hashlib.sha256()
    parameters = op.risk.parameters
    names = parameters.names or [str(i) for i in range(len(parameters.tensors))]
    everything = list(zip(names, parameters.tensors, strict=True))
    if isinstance(model, nn.Module):
        ours = {id(p) for p in parameters.tensors}
        held = [*model.named_parameters(), *model.named_buffers()]
        everything += [(name, t) for name, t in held if id(t) not in ours]
    for name, t in everything:
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(_rows(t[None]).tobytes())
    return digest.hexdigest()


def hash_of_data(op: CurvatureLinearOperator) -> tuple[str, int, int]:
    """Sum of the SHA-256 of each datum, the number of data, and that of batches.

    A sum depends neither on the order of the data nor on how they are batched, as the
    matrix does not. Where data cannot be told apart, whole batches are hashed.
    """
    total, num_data, num_batches = 0, 0, 0
    with op.risk.context(), torch.no_grad():
        for X, y in op.risk.data.batches("hash of the data"):
            try:
                n = op.risk.data.batch_size(X, y)
            except ValueError:
                n = 1
            parts = [
                _rows(t if t.ndim and len(t) == n else t.expand(n, *t.shape))
                for t in nested.tensors((X, y))
            ]
            for row in np.concatenate(parts, axis=1) if parts else ():
                total += int.from_bytes(hashlib.sha256(row.tobytes()).digest(), "big")
            num_data += n
            num_batches += 1
    return f"{total % 2**256:064x}", num_data, num_batches


def _rows(t: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of each row, ``[n, *]``."""
    t = t.detach().to_dense() if t.layout != torch.strided else t.detach()
    rows = t.cpu().contiguous().reshape(len(t), -1)
    return rows.view(torch.uint8).numpy()


def described(problem: Problem, op: CurvatureLinearOperator, loss: float) -> dict[str, Any]:
    """Model, loss, parameters and data, as the record has them."""
    of_data, num_data, num_batches = hash_of_data(op)
    loss_func = problem.loss
    name = getattr(loss_func, "__name__", type(loss_func).__name__)
    names = op.domain_names or tuple(map(str, range(len(op.domain))))
    return {
        "model": type(problem.model).__name__,
        "loss_func": repr(loss_func) if isinstance(loss_func, nn.Module) else name,
        "loss": loss,
        "parameters": op.shape[0],
        "blocks": {n: list(shape) for n, shape in zip(names, op.domain, strict=True)},
        "data": num_data,
        "batches": num_batches,
        "hash_of_parameters": hash_of_parameters(op, problem.model),
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
