"""What in loss and data needs care: one rule each."""

from __future__ import annotations

from collections.abc import Iterator

from curvop.inspection.results import Caution
from curvop.inspection.scene import Rule, Scene


def _reduction(scene: Scene) -> Iterator[Caution]:
    if scene.problem.guessed is not None:
        yield Caution(
            "stop",
            "the loss does not tell its reduction",
            (),
            f"pass reduction={scene.problem.guessed!r}: that is what it does on this batch"
            if scene.problem.guessed != "unknown"
            else "pass reduction=<callable (prediction, y) -> what the loss divides by>",
        )
    if scene.problem.complaint is not None:
        yield Caution("stop", "the loss is not what it says", (), scene.problem.complaint)


def _data(scene: Scene) -> Iterator[Caution]:
    sample = scene.sample
    if sample.is_one_shot:
        yield Caution(
            "stop",
            "the data is a one-shot iterator",
            (),
            "pass list(data) or a DataLoader: each product is a pass; this check has "
            "taken one batch",
        )
    if sample.is_changing:
        yield Caution(
            "stop",
            "the data differs from pass to pass",
            (),
            "turn off random augmentation, or keep one pass as a list",
        )
    if sample.is_uneven:
        yield Caution(
            "note",
            "batches differ in size",
            (),
            "nothing to do: every datum counts the same",
        )


DATA_RULES: tuple[Rule, ...] = (
    _reduction,
    _data,
)
