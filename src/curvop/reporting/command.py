"""The command line: ``curvop report`` and ``curvop preflight``."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from curvop._version import __version__
from curvop.inspection import Problem, number, preflight, with_error
from curvop.reporting.deadline import in_seconds
from curvop.reporting.findings import MATRICES, Settings
from curvop.reporting.report import Report, aloud, silent, written
from curvop.reporting.target import UsageError, loaded

DONE, FAILED, MISUSED, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130
DTYPES = {"float32": torch.float32, "float64": torch.float64}
TARGET = "file.py:function or package.module:function"
REPORT = """\
Compute eigenvalues, spectral density, traces of the layers, effective dimension and the
gradient's alignment, and write DIR/report.html and DIR/report.json. What is done is kept
in DIR/state: the same command goes on where it was interrupted.

"""
PREFLIGHT = """\
Try every way to differentiate on one batch, and say which work, which are right, and what
they cost.

"""
RETURNS = """\
The function takes nothing and returns (model, loss, params, data), or these and an
optimizer or a preconditioner, or a dict with such keys:

  def build():
      model = ...                   # trained, in eval() mode
      data = DataLoader(...)        # pairs (X, y), the same at each pass
      return model, nn.CrossEntropyLoss(), model.parameters(), data
"""
CODES = """\
exit codes:
  0    done
  1    the target raises, returns something else, or a computation failed
  2    the command was misused
  3    the time was up before everything was done: run it again to go on
  130  interrupted: run it again to go on
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # --help, --version, misuse
        return end.code if isinstance(end.code, int) else MISUSED
    if options.command is None:
        parser.print_help()
        return MISUSED
    begin = time.monotonic()
    try:
        with loaded(options.target) as problem:
            run: Callable[[argparse.Namespace, Problem, float], int] = options.run
            return run(options, problem, begin)
    except UsageError as error:
        return _failed(options, error, MISUSED)
    except KeyboardInterrupt:
        aloud("interrupted")
        return INTERRUPTED
    except Exception as error:
        return _failed(options, error, FAILED)


def _failed(options: argparse.Namespace, error: Exception, code: int) -> int:
    if options.traceback:
        traceback.print_exc()
    kind = "" if isinstance(error, UsageError | ValueError) else f"{type(error).__name__}: "
    aloud(f"error: {kind}{error}")
    if code == FAILED and not options.traceback:
        aloud("(--traceback shows where)")
    return code


# ------------------------------------------------------------------------------- report


def _report(options: argparse.Namespace, problem: Problem, begin: float) -> int:
    settings = Settings(
        curvature=options.curvature,
        k=options.k,
        tol=options.tol,
        seed=options.seed,
        dtype=DTYPES.get(options.dtype),
        device=options.device,
        budget=options.budget,
        progressbar=not options.quiet,
        title=options.title or f"{Path(options.target).name}",
    )
    say = silent if options.quiet else aloud
    report = written(problem, settings, options.out, begin, say)
    _summarise(report)
    if report.status == "interrupted":
        return INTERRUPTED
    if report.record["errors"]:
        return FAILED
    return DONE if report.status == "complete" else INCOMPLETE


def _summarise(report: Report) -> None:
    """A few lines on stdout."""
    sections = report.record["sections"]
    lines = []
    for name, key, at in (("largest", "top", 0), ("smallest", "bottom", -1)):
        if values := sections.get(key, {}).get("values"):
            text = with_error(values[at], sections[key]["residuals"][at])
            lines.append((f"{name} eigenvalue", text))
    if "trace" in (traces := sections.get("traces", {})):
        lines.append(("trace", with_error(*traces["trace"])))
    if values := sections.get("sharpness", {}).get("values"):
        label = report.record["preconditioner"]["label"]
        lines.append((f"sharpness under {label}", number(values[0])))
    if "gradient" in sections:
        lines.append(("norm of the gradient", number(sections["gradient"]["norm"])))
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")
    for name, error in report.record["errors"].items():
        aloud(f"error in the section {name!r}: {error}")
    print(f"{report.status}: {report.html}")
    if report.status != "complete":
        print("Run the same command again to go on.")


# ---------------------------------------------------------------------------- preflight


def _preflight(options: argparse.Namespace, problem: Problem, begin: float) -> int:
    found = preflight(
        problem.model,
        problem.loss,
        problem.params,
        problem.data,
        reduction=problem.reduction,
        batch_size_fn=problem.batch_size_fn,
        unpack=problem.unpack,
    )
    print(found.to_json() if options.json else found)
    return DONE if found.is_ready else FAILED


# ------------------------------------------------------------------------------- options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curvop",
        description="Curvature of PyTorch models: eigenvalues, densities, traces.",
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"curvop {__version__} (torch {torch.__version__})",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")

    report = commands.add_parser(
        "report",
        help="compute a model's curvature and write a page about it",
        description=REPORT + RETURNS,
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.set_defaults(run=_report)
    add = report.add_argument
    add("target", help=TARGET)
    add("--out", metavar="DIR", type=Path, default=Path("curvop-report"),
        help="folder of the report (default: curvop-report)")  # fmt: skip
    add("--budget", metavar="TIME", type=_duration, default="10m",
        help="time it may take, as in 90s, 10m, 2h or none (default: 10m)")  # fmt: skip
    add("--curvature", choices=[*MATRICES], default="hessian",
        help="which matrix (default: hessian)")  # fmt: skip
    add("-k", type=_positive, default=10, metavar="N",
        help="eigenvalues at each end of the spectrum (default: 10)")  # fmt: skip
    add("--tol", type=_tolerance, default=1e-4,
        help="small enough residual, relative to the norm (default: 1e-4)")  # fmt: skip
    add("--dtype", choices=[*DTYPES], help="type to compute in (default: the model's)")
    add("--device", type=_device, help="where to compute (default: where the model is)")
    add("--seed", type=_seed, default=0, help="of all random vectors (default: 0)")
    add("--title", help="heading of the page (default: the target)")

    look = commands.add_parser(
        "preflight",
        help="try every way to differentiate on one batch, and say which are right",
        description=PREFLIGHT + RETURNS,
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    look.set_defaults(run=_preflight)
    look.add_argument("target", help=TARGET)
    look.add_argument("--json", action="store_true", help="print JSON")

    for command in (report, look):
        command.add_argument("--quiet", action="store_true", help="no progress on stderr")
        command.add_argument(
            "--traceback", action="store_true", help="show where an error came from"
        )
    return parser


def _duration(text: str) -> float:
    try:
        return in_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a non-negative integer, got {text!r}")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1), got {text!r}")
    return value


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"no device {text!r}: {reason}") from error
    return device
