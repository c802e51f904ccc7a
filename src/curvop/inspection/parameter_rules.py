"""What in the parameters needs care: one rule each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from curvop.inspection.results import Caution
from curvop.inspection.scene import Rule, Scene
from curvop.risk import modules_in, nested, unwrapped


def _unused(scene: Scene) -> Iterator[Caution]:
    where = scene.names(scene.seen.unused)
    if where:
        everything = len(where) == len(scene.parameters.tensors)
        yield Caution(
            "stop" if everything else "care",
            "parameters that the loss does not depend on",
            where,
            "pass the parameters that the model computes with"
            if everything
            else "leave them out of params: their rows and columns are zero",
        )


def _tied(scene: Scene) -> Iterator[Caution]:
    places: dict[int, list[str]] = {}
    for module in modules_in(scene.model):
        for name, p in module.named_parameters(remove_duplicate=False):
            places.setdefault(id(p), []).append(name)
    given = {id(p) for p in scene.parameters.tensors}
    where = tuple(
        " = ".join(dict.fromkeys(names))
        for p, names in places.items()
        if p in given and len(set(names)) > 1
    )
    if where:
        yield Caution(
            "note",
            "tied parameters",
            where,
            "nothing to do: they are one block, differentiated in every place",
        )


def _frozen(scene: Scene) -> Iterator[Caution]:
    given = {id(p) for p in scene.parameters.tensors}
    if isinstance(scene.model, nn.Module):
        names = set(scene.parameters.names or ())
        constant = tuple(
            name
            for name, p in unwrapped(scene.model).named_parameters()
            if id(p) not in given and name not in names
        )
        if constant:
            yield Caution(
                "note",
                "parameters of the model that were not passed",
                constant,
                "nothing to do if that is meant: they are constants",
            )
    off = [i for i, p in enumerate(scene.parameters.tensors) if not p.requires_grad]
    if off and len(off) < len(scene.parameters.tensors):
        yield Caution(
            "care",
            "frozen parameters (requires_grad=False) were passed",
            scene.names(off),
            "leave them out of params, unless their curvature is wanted, too",
        )


def _precision(scene: Scene) -> Iterator[Caution]:
    tensors = scene.parameters.tensors
    dtypes = sorted({str(p.dtype)[6:] for p in tensors})
    if len(dtypes) > 1:
        yield Caution(
            "care",
            "parameters of several types",
            tuple(dtypes),
            f"products come in {str(scene.parameters.dtype)[6:]}, as accurate as the "
            "coarsest of them; model.float() makes one of it",
        )
    half = [i for i, p in enumerate(tensors) if p.itemsize < 4]
    if half:
        yield Caution(
            "care",
            "half-precision parameters",
            scene.names(half),
            "products have two or three digits: copy.deepcopy(model).float() for "
            "eigenvalues and linear systems",
        )
    device = scene.parameters.device.type
    if torch.is_autocast_enabled(device):
        yield Caution(
            "care",
            "automatic mixed precision is on",
            (f"torch.autocast({device!r})",),
            "leave the autocast context to compute curvature",
        )


def _not_finite(scene: Scene) -> Iterator[Caution]:
    where: list[str] = []
    tensors = scene.parameters.tensors
    where += scene.names(i for i, p in enumerate(tensors) if not _is_finite(p))
    X, y = scene.sample.batch
    where += [
        what
        for what, part in (("inputs", X), ("targets", y))
        if not all(_is_finite(t) for t in nested.tensors(part))
    ]
    where += scene.seen.not_finite
    if where:
        yield Caution(
            "stop",
            "values that are not finite",
            tuple(where),
            "look for NaN or infinite entries, or a logarithm, root or quotient at zero",
        )


def _is_finite(t: Tensor) -> bool:
    return bool(t.detach().isfinite().all())


PARAMETER_RULES: tuple[Rule, ...] = (
    _not_finite,
    _precision,
    _unused,
    _frozen,
    _tied,
)
