"""Hashes that tell a model and its data from others."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvop.curvature import CurvatureLinearOperator
from curvop.risk import nested


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
    with op.risk.surroundings(), torch.no_grad():
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
