"""The key numbers, at the top of the page."""

from __future__ import annotations

from html import escape

from curvop.reporting import derived
from curvop.reporting.findings import Findings
from curvop.reporting.wording import number, percent, with_error

DAMPING = 1e-3  # of the largest curvature, at which the effective dimension is told


def cards(findings: Findings) -> str:
    """The key numbers."""
    found = []

    def card(name: str, value: str, more: str = "") -> None:
        tail = f'<div class="more">{escape(more)}</div>' if more else ""
        found.append(
            f'<div class="card"><dt>{escape(name)}</dt><dd><span class="value">'
            f"{escape(value)}</span>{tail}</dd></div>"
        )

    N = findings.model["parameters"]
    top, bottom = (derived.eigenpairs(findings, name) for name in ("top", "bottom"))
    if top is not None:
        value = float(top.values[-1])
        more = "no curvature is positive"
        if value > 0:
            more = f"gradient descent is stable for η < {number(2 / value)}"
        found_value = with_error(value, float(top.residuals[-1]))
        card("largest eigenvalue (sharpness)", found_value, more)
    if bottom is not None:
        value = float(bottom.values[0])
        more = "negative curvature" if value < -float(bottom.residuals[0]) else ""
        card("smallest eigenvalue", with_error(value, float(bottom.residuals[0])), more)
    if (t := derived.trace(findings)) is not None:
        mean = f"mean eigenvalue {number(t.value / N, 3)}"
        card("trace", with_error(t.value, t.standard_error), mean)
    if (d := derived.dimensions(findings)) is not None and float(d.values.max()) > 0:
        at = int((d.damping / d.damping[-1] - DAMPING).abs().argmin())
        card(
            "effective dimension",
            with_error(float(d.values[at]), float(d.standard_error[at])),
            f"of {N:,}, at damping {number(float(d.damping[at]), 3)}",
        )
    gradient, shares = (
        derived.section(findings, "gradient"),
        derived.gradient_shares(findings),
    )
    if gradient:
        more = ""
        if shares is not None and len(shares):
            more = f"{percent(float(shares.sum().clamp(max=1)))} in the top {len(shares)}"
        card("norm of the gradient", number(gradient["norm"]), more)
    given, sharp = findings.preconditioner, derived.eigenpairs(findings, "sharpness")
    if given and sharp is not None:
        limit = given["threshold"]
        more = f"threshold {number(limit)}" if limit else ""
        card(f"sharpness under {given['label']}", number(float(sharp.values[0])), more)
    return f'<dl class="cards">{"".join(found)}</dl>' if found else ""
