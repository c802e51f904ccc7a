"""The state of a long run on disk, written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from curvop.checksum import checksum, not_finite
from curvop.operators import LinearOperator, as_operator
from curvop.scaling import norm

State = dict[str, Any]
"""Tensors, numbers, strings, booleans, ``None``, and lists, tuples and dicts of them."""

# Products between two writes, hence the most that a killed run repeats.
EVERY = 5


class Checkpoint:
    """A file that a run can be continued from.

    Without a path nothing is written and nothing is found, so that the code of an algorithm
    is the same with and without a checkpoint.

    A run belongs to its problem: the name and settings of the algorithm, its tensors (such
    as a right-hand side), and the matrix. Settings and tensors are hashed. The matrix is
    recognised by one product with a fixed vector, equal up to rounding.

    The file has a checksum of its contents, and a damaged one is refused. Files without a
    checksum, from earlier versions, are read.

    Args:
        path: The file, or ``None``.
        A: The matrix, which a path needs: it is multiplied once.
        problem: Everything else that the result depends on: the name of the algorithm,
            its settings, right-hand sides, the state of the generator.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     A = as_operator(torch.eye(2))
    ...     file = Checkpoint(Path(folder) / "run.pt", A, {"algorithm": "power", "k": 1})
    ...     file.save({"iteration": 3, "v": torch.ones(2)})
    ...     file.load()["iteration"]
    3
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        A: LinearOperator | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        A = as_operator(A)
        if not self._path.parent.is_dir():
            raise ValueError(
                f"Expected a checkpoint in a directory that exists, got {self._path}. "
                "Make its directory first."
            )
        self._problem = {name: checksum(value) for name, value in (problem or {}).items()}
        N = A.shape[1]
        v = torch.randn(N, generator=Generator().manual_seed(N), dtype=torch.float64)
        self._product = (A @ v.to(A.device, A.dtype)).detach().cpu()

    @property
    def num_matvecs(self) -> int:
        """Number of products that it took to recognise the matrix."""
        return 0 if self._path is None else 1

    def load(self, *, finite: bool = False) -> State | None:
        """The state that was written last, or ``None`` if there is none.

        Args:
            finite: Whether to refuse a state with infinity or NaN, from which an iteration
                cannot continue. In stored results, they may mark unknown values.

        Raises:
            ValueError: If the file belongs to another problem, is damaged, holds what is
                not finite, or is not a checkpoint.
        """
        if self._path is None or not self._path.exists():
            return None
        mend = f"Give another path, or remove {self._path} to start anew."
        with open(self._path, "rb") as file:
            try:
                stored = torch.load(file, weights_only=True, map_location="cpu")
                written = stored.pop("checksum", None)
                problem, product = dict(stored["problem"]), stored["product"]
                state: State = stored["state"]
            except Exception as e:  # for another kind of file, anything
                raise ValueError(
                    f"Expected a checkpoint, got {self._path}, which cannot be read as "
                    f"one. {mend}"
                ) from e
        if written not in (None, checksum(stored)):
            raise ValueError(
                f"Expected {self._path} as it was written, got content that differs from "
                f"its checksum: the file was damaged. {mend}"
            )
        differing = sorted(
            name
            for name in {*problem, *self._problem}
            if problem.get(name) != self._problem.get(name)
        )
        if not differing and not _same(product, self._product):
            differing = ["the matrix"]
        if differing:
            raise ValueError(
                "Expected a checkpoint of this problem, got one that differs in "
                f"{', '.join(differing)}. {mend}"
            )
        if finite and (names := ", ".join(not_finite(state))):
            raise ValueError(
                f"Expected a finite state in {self._path}, got inf or nan in {names}. "
                f"{mend}"
            )
        return state

    def save(self, state: State) -> None:
        """Write the state; a crash at any moment leaves the old file or the new one."""
        if self._path is None:
            return
        stored: State = {"problem": self._problem, "product": self._product, "state": state}
        stored["checksum"] = checksum(stored)
        part = self._path.with_name(self._path.name + ".part")
        try:
            with open(part, "wb") as file:
                torch.save(stored, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def due(self, before: int, after: int) -> bool:
        """Whether to write, after products went from ``before`` to ``after`` in number."""
        return self._path is not None and after // EVERY > before // EVERY


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two products are equal to rounding, which depends on threads and devices."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance: float = torch.finfo(a.dtype).eps ** 0.75  # far above rounding
    a, b = a.double(), b.double()
    size = max(float(norm(a)), float(norm(b)))
    return float(norm(a - b)) <= tolerance * size
