"""Figures of a report, as SVG that takes its colours from the page."""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvop.plot import BLUE, GREY, ORANGE
from curvop.reporting.effective_dimension import EffectiveDimension

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR = re.compile(r"(?<=[:\s])#([0-9a-fA-F]{6})(?=[;\"\s])")
INK, PAPER = "#1c1e21", "#ffffff"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "legend.facecolor": PAPER,
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "svg.fonttype": "path",
}


def picture(
    name: str, alt: str, draw: Callable[[Axes], object], *, height: float = 3.3
) -> str:
    """One axes, drawn, as an SVG element without a colour or an id of its own.

    Args:
        name: Of the figure, in front of its ids.
        alt: What it shows, for those who do not see it.
        draw: What to draw.
        height: In inches; the width is 4.8.
    """
    from html import escape

    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {**STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = COLOUR.sub(lambda found: f"var(--c{found[1].lower()})", svg)
    root, inside = svg.split(">", 1)
    root = re.sub(r' (?:height|width)="[^"]*"', "", root)  # those of the page
    return f'{root} role="img" aria-label="{escape(alt)}">{inside}'


def colours(page: str, *, dark: bool) -> str:
    """Definitions of the colours that figures take from a page."""
    used = sorted(set(re.findall(r"var\(--c([0-9a-f]{6})\)", page)))
    shown = {c: _on_black(c) if dark else f"#{c}" for c in used}
    return "".join(f"--c{c}:{value};" for c, value in shown.items())


def _on_black(colour: str) -> str:
    """A grey is inverted, another colour made light enough."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
    h, lightness, s = colorsys.rgb_to_hls(r, g, b)
    lightness = max(lightness, 0.58) if s > 0.2 else 0.94 - 0.87 * lightness
    rgb = colorsys.hls_to_rgb(h, lightness, s)
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def effective_dimension(found: EffectiveDimension, N: int, ax: Axes) -> None:
    """Against the damping, with two standard errors."""
    damping, values = found.damping.numpy(), found.values.numpy()
    error = found.standard_error.nan_to_num(0).numpy()
    low, high = (values - 2 * error).clip(0), (values + 2 * error).clip(0, N)
    ax.fill_between(
        damping, low, high, color=BLUE, alpha=0.35, lw=0, label="± 2 standard errors"
    )
    ax.plot(damping, values, color=BLUE, lw=1.5, label="effective dimension")
    ax.axhline(N, color=GREY, lw=0.8, ls=":")
    ax.annotate(
        f"all {N:,} parameters",
        (damping[-1], N),
        (0, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GREY,
    )
    ax.set_xscale("log")
    if values.min() > 0:
        ax.set_yscale("log")
        ax.set_ylim(max(values.min() / 2, 1e-3), 1.6 * N)
    else:
        ax.set_ylim(0, 1.05 * N)
    ax.set_xlabel("damping λ (loss per squared parameter)")
    ax.set_ylabel("directions of more curvature")
    ax.legend(loc="lower left")


def alignment(shares: Tensor, N: int, ax: Axes) -> None:
    """Share of the squared gradient in the space of the top eigenvectors."""
    from matplotlib.ticker import MaxNLocator

    ranks = torch.arange(1, len(shares) + 1)
    total = shares.cumsum(0).clamp(max=1)
    ax.bar(ranks.numpy(), 100 * total.numpy(), color=BLUE, width=0.7, label="gradient")
    chance = 100 * ranks.double() / N
    ax.plot(
        ranks.numpy(), chance.numpy(), color=ORANGE, ls="--", marker="o", ms=3,
        label="random direction",
    )  # fmt: skip
    ax.set_ylim(0, 105)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("eigenvectors, from the largest eigenvalue")
    ax.set_ylabel("share of ‖g‖² in their space (%)")
    ax.legend(loc="best")
