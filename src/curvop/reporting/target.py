"""Model, loss, parameters and data, as a function of the user's file gives them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from curvop.inspection import Problem
from curvop.risk import listed

NEEDED = ("model", "loss", "params", "data")
OPTIONAL = ("optimizer", "preconditioner", "reduction", "batch_size_fn", "unpack")
EXPECTED = (
    "Expected (model, loss, params, data), the same with an optimizer or a preconditioner "
    f"as fifth, or a dict with the keys {', '.join(NEEDED)} and, if you like, "
    f"{', '.join(OPTIONAL)}"
)


class UsageError(Exception):
    """The command cannot be carried out as it was given."""


@contextmanager
def loaded(spec: str) -> Iterator[Problem]:
    """The target of ``file.py:function`` or ``package.module:function``.

    The folder of the file is importable until the context ends.

    Args:
        spec: Where it is.

    Raises:
        UsageError: If there is no such file or function.
        ValueError: If the function raises, or returns something else.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise UsageError(
            f"Expected a target as file.py:function or package.module:function, got "
            f"{spec!r}. For instance: curvop report train.py:build"
        )
    folder = Path(place).resolve().parent if place.endswith(".py") else Path.cwd()
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        build = getattr(_module(place), name, None)
        if build is None:
            raise UsageError(f"{place} has no function {name!r}.")
        if not callable(build):
            raise ValueError(f"Expected {name} in {place} as a function, got {build!r}.")
        yield returned(_called(build, (), f"{name}() of {place}"), f"{name}()")
    finally:
        sys.path[:] = before


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if not _exists(place):
            raise UsageError(f"There is no module {place}. Is its folder the current one?")
        module: ModuleType = _called(importlib.import_module, (place,), place)
        return module
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"There is no file {place}.")
    # what the file imports may import it again
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    held = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        _called(spec.loader.exec_module, (module,), place)
    except BaseException:
        if held is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = held
        raise
    return module


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _called(function: Callable[..., Any], args: tuple[Any, ...], what: str) -> Any:
    """Call what the user wrote; tell the line in which it failed."""
    try:
        return function(*args)
    except (Exception, SystemExit) as error:
        message = f"{what} raised {type(error).__name__}: {error}"
        steps = [s for s in traceback.extract_tb(error.__traceback__) if _is_users(s)]
        if steps:
            message += f" ({Path(steps[-1].filename).name}, line {steps[-1].lineno})"
        raise ValueError(message) from error


def _is_users(step: traceback.FrameSummary) -> bool:
    """Whether a frame is neither ours nor an installed package's."""
    here = os.path.dirname(__file__)
    return not step.filename.startswith((here, "<")) and "site-packages" not in str(
        step.filename
    )


def returned(built: Any, what: str) -> Problem:
    """What a function returned, as a problem.

    Args:
        built: Tuple or dict.
        what: Its name, for messages.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(built, Mapping):
        unknown = sorted(set(map(str, built)) - {*NEEDED, *OPTIONAL})
        missing = [key for key in NEEDED if key not in built]
        if unknown or missing:
            got = f"a dict without {missing}" if missing else f"a dict with {unknown}"
            raise ValueError(f"{EXPECTED}; {what} returned {got}.")
        fields = dict(built)
    elif isinstance(built, tuple | list) and len(built) in (4, 5):
        fields = dict(zip(NEEDED, built, strict=False))
        if len(built) == 5:
            is_optimizer = hasattr(built[4], "param_groups")
            fields["optimizer" if is_optimizer else "preconditioner"] = built[4]
    else:
        size = f" of {len(built)}" if isinstance(built, tuple | list) else ""
        raise ValueError(f"{EXPECTED}; {what} returned {type(built).__name__}{size}.")
    return problem(**fields)


def problem(model: Any, loss: Any, params: Any, data: Any, **options: Any) -> Problem:
    """A problem whose parameters are tensors.

    Raises:
        ValueError: If they cannot be told.
    """
    if params is None:
        if not isinstance(model, nn.Module):
            raise ValueError(
                "params=None means those of the module that require a gradient, but the "
                f"model is a {type(model).__name__}. Give the parameters."
            )
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    elif isinstance(params, nn.Module | Iterable) and not isinstance(params, Tensor):
        try:
            params = listed(params)
        except TypeError as error:
            raise ValueError(str(error)) from error
    else:
        raise ValueError(
            f"Expected params as a list or dict of tensors, got {type(params).__name__}."
        )
    if not params:
        raise ValueError(
            "Expected at least one parameter, got none. Is every parameter frozen "
            "(requires_grad=False)? Then say which ones you mean."
        )
    found = Problem(model, loss, params, data, **options)
    if found.optimizer is not None and found.preconditioner is not None:
        raise ValueError("Expected an optimizer or a preconditioner, got both.")
    return found
