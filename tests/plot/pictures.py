"""Every picture with a baseline: ``python -m tests.plot.pictures FOLDER`` draws them anew.

The baseline is without words, which are in ``words.json``; the pictures in the folder have
them. Look at each one of both before it is committed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.text import Text

import curvop
from tests.plot import results

BASELINE = Path(__file__).parent / "baseline"
WORDS = BASELINE / "words.json"

PICTURES: dict[str, Callable[[Axes], Axes]] = {
    "spectrum": lambda ax: curvop.plot.spectrum(results.pairs(), ax=ax),
    "spectrum_log": lambda ax: curvop.plot.spectrum(
        results.pairs((1e-3, 0.1, 2.0, 50.0), (5e-4, 1e-2, 0.5, 1.0)), log=True, ax=ax
    ),
    "spectrum_symlog": lambda ax: curvop.plot.spectrum(
        results.pairs((-20.0, -0.1, 0.1, 2.0, 50.0), (1.0, 1e-2, 1e-2, 0.5, 1.0)),
        log=True,
        ax=ax,
    ),
    "density": lambda ax: curvop.plot.density(results.density(), ax=ax),
    "density_pairs": lambda ax: curvop.plot.density(
        results.density(), pairs=results.pairs((4.1, 9.2), (0.1, 0.1)), ax=ax
    ),
    "density_log": lambda ax: curvop.plot.density(
        results.density("symlog"),
        pairs=results.pairs((-0.3, 4.1, 9.2), (0.1, 0.1, 0.1)),
        log=True,
        ax=ax,
    ),
    "per_layer": lambda ax: curvop.plot.per_layer(results.traces(), ax=ax),
    "convergence": lambda ax: curvop.plot.convergence(
        {
            "cg": results.solution(),
            "cg, preconditioned": results.solution(0.2, 9),
            "minres": results.solution(0.9, 15, "maxiter"),
        },
        ax=ax,
    ),
    "convergence_columns": lambda ax: curvop.plot.convergence(results.two_columns(), ax=ax),
    "landscape": lambda ax: curvop.plot.landscape(results.landscape(), ax=ax),
    "monitor": lambda ax: curvop.plot.monitor(results.history(), ax=ax),
    "monitor_preconditioned": lambda ax: curvop.plot.monitor(
        results.history(preconditioned=True, momentum=0.9), ax=ax
    ),
}


def draw(name: str, path: Path, *, words: bool = True) -> list[str]:
    """One picture, rendered small; the words in it.

    Args:
        name: Which one.
        path: Where it goes.
        words: Whether to show them, and to make room for them. Without, no pixel depends
            on fonts and on how they are rendered.
    """
    with matplotlib.style.context("default"):
        layout = "constrained" if words else "none"
        fig, ax = plt.subplots(figsize=(5, 3.6), dpi=64, layout=layout)
        PICTURES[name](ax)
        fig.canvas.draw()
        texts = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text()]
        said = [t.get_text() for t in texts]
        if not words:
            for artist in [*texts, *fig.findobj(Legend)]:
                artist.set_visible(False)
        fig.savefig(path, metadata={"Software": None})  # it names a version
        plt.close(fig)
    return said


def draw_all(folder: Path) -> None:
    """The baseline, and in the folder what it looks like with words."""
    said = {}
    for name in PICTURES:
        draw(name, folder / f"{name}.png")
        said[name] = draw(name, BASELINE / f"{name}.png", words=False)
    text = json.dumps(said, indent=1, ensure_ascii=False)
    WORDS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    matplotlib.use("Agg")
    draw_all(Path(sys.argv[1]))
