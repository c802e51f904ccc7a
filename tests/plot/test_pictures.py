"""Pictures against baselines that someone looked at; light and dark."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pytest
from matplotlib.testing.compare import compare_images

import curvop
from tests.plot import results
from tests.plot.pictures import BASELINE, PICTURES, WORDS, draw

matplotlib.use("Agg")

# Root mean square over pixels, of 255, for what rounding does to an edge. No font is in
# the pictures. One of five points that has moved makes 5.0, two marks that are missing 4.5.
TOLERANCE = 1.0


def difference(name: str, folder: Path) -> str | None:
    """What ``compare_images`` finds, or ``None``."""
    path = folder / f"{name}.png"
    draw(name, path, words=False)
    return compare_images(str(BASELINE / f"{name}.png"), str(path), TOLERANCE)


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_the_one_that_was_looked_at(name, tmp_path):
    assert difference(name, tmp_path) is None


@pytest.mark.parametrize("name", PICTURES)
def test_words_are_those_that_were_read(name, tmp_path):
    read = json.loads(WORDS.read_text(encoding="utf-8"))[name]
    assert draw(name, tmp_path / "picture.png") == read


CHANGED = {
    "spectrum": lambda ax: curvop.plot.spectrum(
        results.pairs((-2.5, -0.4, 1.5, 5.0, 7.0)), ax=ax
    ),
    "density": lambda ax: curvop.plot.density(results.density("symlog"), ax=ax),
    "density_pairs": lambda ax: curvop.plot.density(results.density(), ax=ax),
    "per_layer": lambda ax: curvop.plot.per_layer(
        results.traces() | {"conv.bias": curvop.Estimate(2.0, 0.8, 50)}, ax=ax
    ),
    "convergence": lambda ax: curvop.plot.convergence(results.solution(), ax=ax),
    "landscape": lambda ax: curvop.plot.landscape(
        results.landscape(), quadratic=False, ax=ax
    ),
    "monitor": lambda ax: curvop.plot.monitor(results.history(num=20), ax=ax),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_wrong_picture_is_noticed(name, tmp_path, monkeypatch):
    monkeypatch.setitem(PICTURES, name, CHANGED[name])
    assert difference(name, tmp_path) is not None


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_drawn_in_the_colour_of_the_background(name):
    """In light and in dark all that is outside of a filled area stands out."""
    for style in ("default", "dark_background"):
        with matplotlib.style.context(style):
            fig, ax = matplotlib.pyplot.subplots()
            PICTURES[name](ax)
            ground = luminance(ax.get_facecolor())
            if name != "landscape":  # there the ground is the filled contours
                for line in ax.lines:
                    assert contrast(luminance(line.get_color()), ground) > 3
            for text in [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels()]:
                assert contrast(luminance(text.get_color()), ground) > 4.5
            matplotlib.pyplot.close(fig)


def luminance(colour) -> float:
    """Relative luminance, as the WCAG define it."""
    rgb = matplotlib.colors.to_rgb(colour)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
