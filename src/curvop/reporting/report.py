"""A report of the curvature of a model: a page, and a record."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from curvop.arguments import integer, tolerance
from curvop.inspection import Problem
from curvop.reporting.computation import Say, find
from curvop.reporting.deadline import in_seconds
from curvop.reporting.findings import MATRICES, Settings
from curvop.reporting.page import page
from curvop.reporting.target import problem


@dataclass(frozen=True)
class Report:
    """Where a report is, and whether it is complete.

    Attributes:
        status: ``"complete"``; ``"incomplete"``, if the time was up before all sections
            were done; or ``"interrupted"``, by Ctrl-C.
        html: The page.
        json: The record.
        record: What is in it.
    """

    status: str
    html: Path
    json: Path
    record: dict[str, Any]


def report(
    model_func: nn.Module | Callable[..., Any],
    loss_func: Callable[[Any, Any], Tensor],
    params: Iterable[Tensor] | Mapping[str, Tensor] | None,
    data: Iterable[tuple[Any, Any]],
    *,
    out: str | os.PathLike[str] = "curvop-report",
    optimizer: torch.optim.Optimizer | None = None,
    preconditioner: Any = None,
    curvature: Literal["hessian", "ggn"] = "hessian",
    k: int = 10,
    tol: float = 1e-4,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    budget: str | float | None = "10m",
    reduction: Any = None,
    batch_size_fn: Callable[[Any], int] | None = None,
    unpack: Callable[[Any], Any] | None = None,
    title: str | None = None,
    progressbar: bool = False,
) -> Report:
    r"""Compute what there is to know of a model's curvature, and write a page about it.

    The largest and smallest eigenvalues with residuals, the spectral density with its
    band, traces of the layers and effective dimensions with error bars, the gradient in
    the space of the top eigenvectors, and the sharpness under a preconditioner
    :math:`P`, the largest :math:`λ` of :math:`A v = λ P v`.

    What is done is kept in ``out``: the same call goes on where an earlier one was
    interrupted, or had no time left. A model or data that have changed are told, and
    everything is computed anew. The model is left as found.

    Args:
        model_func: As for :class:`HessianLinearOperator`, and so are the next three.
        loss_func: A torch loss module, or a callable ``(prediction, y) -> scalar``.
        params: List or dict of tensors; ``None`` for those of the module that require a
            gradient.
        data: A re-iterable of batches ``(X, y)``.
        out: Folder for ``report.html`` and ``report.json``; made if it is missing.
        optimizer: One that has taken steps: Adam, AdamW, RMSprop, Adagrad or SGD. Its
            state gives ``P``, and its learning rate the edge of stability.
        preconditioner: ``P`` itself: the diagonal ``[N]``, tensors in the shapes of the
            parameters, or a positive definite operator.
        curvature: The Hessian, or the generalised Gauss-Newton matrix.
        k: Number of eigenvalues at each end; all of them if there are fewer.
        tol: Residual that is small enough, relative to the norm of the matrix.
        seed: Of all random vectors; no global generator is touched.
        dtype: To compute in, on a copy of the module; by default that of the parameters,
            and float32 for half precision.
        device: To compute on, with a copy of the module.
        budget: Time that it may take: seconds, or as in ``"10m"``; ``None`` for as long
            as it needs. The most important sections come first. No product is begun that
            would not end in time; looking at model and data is not cut short.
        reduction: Of a callable loss that does not tell.
        batch_size_fn: Number of data in ``X``, where it cannot be told.
        unpack: For batches in another form: function of a batch that returns ``(X, y)``.
        title: Heading of the page; by default the name of the module's class.
        progressbar: Whether to show progress, on stderr.

    Returns:
        The paths, the status and the record.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If something is of the wrong kind.
        ValueError: If something does not fit, or is not the same at each pass.
        KeyboardInterrupt: If Ctrl-C comes before there is anything to report.

    >>> import tempfile
    >>> model, X = nn.Linear(3, 1), torch.eye(3)
    >>> data = [(X, torch.zeros(3, 1))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = report(model, nn.MSELoss(), None, data, out=folder)
    ...     made.status, made.record["problem"]["parameters"]
    ('complete', 4)
    """
    begin = time.monotonic()
    if curvature not in MATRICES:
        raise ValueError(f"Expected curvature as one of {[*MATRICES]}, got {curvature!r}.")
    about = problem(
        model_func,
        loss_func,
        params,
        data,
        optimizer=optimizer,
        preconditioner=preconditioner,
        reduction=reduction,
        batch_size_fn=batch_size_fn,
        unpack=unpack,
    )
    settings = Settings(
        curvature=curvature,
        k=integer(k, "k", 1),
        tol=tolerance(tol),
        seed=integer(seed, "seed", 0),
        dtype=dtype,
        device=None if device is None else torch.device(device),
        budget=in_seconds(budget),
        progressbar=progressbar,
        title=title or type(model_func).__name__,
    )
    return written(about, settings, Path(out), begin, aloud if progressbar else silent)


def written(
    about: Problem, settings: Settings, folder: Path, begin: float, say: Say
) -> Report:
    """Compute, and write both files."""
    try:
        import matplotlib  # noqa: F401, before hours of work
    except ImportError as error:
        raise ImportError(
            'A report needs matplotlib: pip install "curvop[report]".'
        ) from error

    findings = find(about, settings, folder / "state", begin, say)
    html, json = folder / "report.html", folder / "report.json"
    for path, content in ((json, findings.to_json()), (html, page(findings))):
        part = path.with_name(path.name + ".part")
        part.write_text(content, encoding="utf-8")
        os.replace(part, path)
    return Report(findings.status, html, json, findings.to_dict())


def silent(message: str) -> None:
    """Tell nothing."""


def aloud(message: str) -> None:
    """Tell on stderr, above the bars."""
    tqdm.write(f"curvop: {message}", file=sys.stderr)
