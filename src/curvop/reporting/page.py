"""What the page of a report shows: numbers, rows and figures, for the template's words."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from curvop.inspection import number, percent, plural, render, seconds, with_error
from curvop.plot import density, per_layer, spectrum
from curvop.reporting import figures
from curvop.reporting.findings import Findings
from curvop.reporting.sections import SECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DAMPING = 1e-3  # of the largest curvature, at which the effective dimension is told
MOST_BARS = 30  # of a figure with one for each block
SHORTFALLS = ("maxiter", "inaccurate")  # of a solver that came to its end

Shown = dict[str, Any]  # what the template is told of a section


def page(findings: Findings) -> str:
    """The report as HTML: one file that needs nothing else."""
    sections = {
        "eigenvalues": _eigenvalues(findings),
        "sharpness": _sharpness(findings),
        "density": _density(findings),
        "dimension": _dimension(findings),
        "layers": _layers(findings),
        "gradient": _gradient(findings),
    }
    drawn = "".join(svg for s in sections.values() for svg, _ in s.get("figures", ()))
    return render(
        "curvop.reporting",
        "report.html",
        findings=findings,
        css=files("curvop.reporting").joinpath("style.css").read_text(encoding="utf-8"),
        light=figures.colours(drawn, dark=False),
        dark=figures.colours(drawn, dark=True),
        cards=_cards(findings),
        account=_account(findings),
        run=_run(findings),
        **sections,
    )


def _cards(findings: Findings) -> list[tuple[str, str, str]]:
    """The key numbers, at the top: name, value, and what it means."""
    found = []
    N = findings.model["parameters"]
    if (top := findings.eigenpairs("top")) is not None:
        value, residual = float(top.values[-1]), float(top.residuals[-1])
        more = "no curvature is positive"
        if value > 0:
            more = f"gradient descent is stable for η < {number(2 / value)}"
        name = "largest eigenvalue (sharpness)"
        found.append((name, with_error(value, residual), more))
    if (bottom := findings.eigenpairs("bottom")) is not None:
        value, residual = float(bottom.values[0]), float(bottom.residuals[0])
        more = "negative curvature" if value < -residual else ""
        found.append(("smallest eigenvalue", with_error(value, residual), more))
    if (t := findings.trace()) is not None:
        mean = f"mean eigenvalue {number(t.value / N, 3)}"
        found.append(("trace", with_error(t.value, t.standard_error), mean))
    if (d := findings.dimensions()) is not None and float(d.values.max()) > 0:
        at = d.nearest(DAMPING)
        text = with_error(float(d.values[at]), float(d.standard_error[at]))
        more = f"of {N:,}, at damping {number(float(d.damping[at]), 3)}"
        found.append(("effective dimension", text, more))
    if state := findings.section("gradient"):
        shares, more = findings.gradient_shares(), ""
        if shares is not None and len(shares):
            more = f"{percent(float(shares.sum().clamp(max=1)))} in the top {len(shares)}"
        found.append(("norm of the gradient", number(state["norm"]), more))
    given, sharp = findings.preconditioner, findings.eigenpairs("sharpness")
    if given and sharp is not None:
        more = f"threshold {number(given['threshold'])}" if given["threshold"] else ""
        name = f"sharpness under {given['label']}"
        found.append((name, number(float(sharp.values[0])), more))
    return found


def _eigenvalues(findings: Findings) -> Shown:
    """Both ends of the spectrum."""
    shown, rows = [], []
    for key, name in (("top", "largest"), ("bottom", "smallest")):
        if (pairs := findings.eigenpairs(key)) is None:
            continue
        values, residuals = pairs.values.tolist(), pairs.residuals.tolist()
        alt = (
            f"{plural(len(values), 'eigenvalue')} at the {key}, from {number(values[0])} "
            f"to {number(values[-1])}"
        )
        is_wide = values[0] > 0 and values[-1] / values[0] > 30
        svg = _picture(key, alt, spectrum, pairs, log=is_wide)
        shown.append((svg, f"The {name} eigenvalues. Bars are residuals."))
        ends = list(zip(values, residuals, strict=True))
        rows += [
            (f"{name} {i}", number(value, 8), number(residual, 2))
            for i, (value, residual) in enumerate(
                reversed(ends) if key == "top" else ends, 1
            )
        ]
    linear = findings.density("linear")
    return {
        "warnings": _unfinished(findings, "top", "bottom"),
        "figures": shown,
        "rows": rows,
        "products": sum(findings.section(s).get("products", 0) for s in ("top", "bottom")),
        # what Ritz values of the density's random vectors tell of the ends
        "low": None if linear is None else float(linear.nodes.min()),
        "high": None if linear is None else float(linear.nodes.max()),
    }


def _sharpness(findings: Findings) -> Shown:
    """What the optimizer sees, if there is one."""
    given = findings.preconditioner
    if given is None:
        return {}
    name = "top" if given["is_identity"] else "sharpness"
    pairs = findings.eigenpairs(name)
    return {
        "warnings": _unfinished(findings, name),
        "value": None if pairs is None else float(pairs.values[-1]),
        "residual": None if pairs is None else float(pairs.residuals[-1]),
    }


def _density(findings: Findings) -> Shown:
    """All eigenvalues, linear and logarithmic."""
    linear, symlog = findings.density("linear"), findings.density("symlog")
    shown: Shown = {"warnings": _unfinished(findings, "density"), "figures": []}
    if linear is None or symlog is None:
        return shown
    pairs = findings.both_ends()
    for name, found, caption in (
        ("linear", linear, "Linear axes: where the mass is."),
        ("logarithmic", symlog, "Logarithmic axes, symmetric about zero: tails and bulk."),
    ):
        alt, log = f"density of the eigenvalues, {name} axes", found is symlog
        svg = _picture(f"density-{name}", alt, density, found, pairs=pairs, log=log)
        shown["figures"].append((svg, caption))
    shown["probes"], shown["steps"] = linear.nodes.shape
    return shown


def _dimension(findings: Findings) -> Shown:
    """Effective dimension against damping."""
    found, other = findings.dimensions(), "dimension" in findings.wanted
    # without a section of its own, the density says why there is none
    warnings = _unfinished(findings, "dimension") if other else []
    shown: Shown = {"warnings": warnings, "is_known": found is not None, "figures": []}
    if found is None or float(found.values.max()) <= 0:
        return shown
    damping, values = found.damping.tolist(), found.values.tolist()
    errors, at = found.standard_error.tolist(), found.nearest(DAMPING)
    alt = (
        f"effective dimension falling with the damping, {number(values[at])} at "
        f"{number(damping[at], 3)}"
    )
    N = findings.model["parameters"]
    svg = _picture("dimension", alt, figures.effective_dimension, found, N)
    shown["figures"] = [(svg, "Effective dimension against damping.")]
    shown["is_gauss_newton"] = other
    shown["rows"] = [
        (number(damping[i], 3), with_error(values[i], errors[i]))
        for i in range(0, len(damping), 5)
    ]
    return shown


def _layers(findings: Findings) -> Shown:
    """Traces of the blocks."""
    traces = findings.traces()
    shown: Shown = {
        "warnings": _unfinished(findings, "traces"),
        "total": findings.trace(),
        "figures": [],
    }
    if not traces:
        return shown
    ranked = sorted(traces, key=lambda name: -abs(traces[name].value))[:MOST_BARS]
    drawn = {name: traces[name] for name in traces if name in ranked}
    alt = f"trace of {len(drawn)} parameters; the largest is that of {ranked[0]}"
    names, height = [_shortened(n) for n in drawn], 1.1 + 0.26 * max(len(drawn), 4)
    svg = _picture("layers", alt, per_layer, drawn, height=height, names=names)
    shapes = findings.model["blocks"]
    shown["figures"] = [(svg, "Traces of the diagonal blocks.")]
    shown["num_drawn"] = len(drawn)
    shown["rows"] = [
        (
            name,
            " × ".join(map(str, shapes.get(name, []))) or "scalar",
            with_error(t.value, t.standard_error),
            number(t.value / math.prod(shapes.get(name, [])), 3),
        )
        for name, t in traces.items()
    ]
    return shown


def _shortened(name: str, most: int = 24) -> str:
    """The end of a name tells more than its beginning."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _gradient(findings: Findings) -> Shown:
    """The gradient in the space of the top eigenvectors."""
    state, shares = findings.section("gradient"), findings.gradient_shares()
    shown: Shown = {
        "warnings": _unfinished(findings, "gradient"),
        "norm": state.get("norm"),
        "along": state.get("curvature_along"),
        "figures": [],
    }
    if not state.get("norm") or shares is None or not len(shares):
        return shown
    total = percent(float(shares.sum().clamp(max=1)))
    alt = f"{total} of the squared gradient in the space of {len(shares)} eigenvectors"
    N, top = findings.model["parameters"], findings.eigenpairs("top")
    svg = _picture("gradient", alt, figures.alignment, shares, N)
    caption = "Share of the squared gradient in the space of the first eigenvectors."
    values = [] if top is None else top.values.flip(0).tolist()
    shown["figures"] = [(svg, caption)]
    shown["rows"] = [
        (str(i), number(value), percent(share))
        for i, (value, share) in enumerate(zip(values, shares.tolist(), strict=True), 1)
    ]
    return shown


def _picture(
    name: str,
    alt: str,
    draw: Callable[..., object],
    *what: Any,
    height: float = 3.3,
    **how: Any,
) -> str:
    def on(ax: Axes) -> None:
        draw(*what, ax=ax, **how)

    return figures.picture(name, alt, on, height=height)


# ------------------------------------------------------------------ how far it came


def _unfinished(findings: Findings, *names: str) -> list[str]:
    """What the reader must know of sections that did not come to their end."""
    words = []
    titles = {section.name: section.title for section in SECTIONS}
    for name in names:
        state = findings.section(name)
        if name in findings.errors:
            words.append(f"{titles[name]} failed: {findings.errors[name]}")
        elif state.get("status") == "incomplete":
            more = "to go on" if state["resumable"] else "with a larger budget"
            words.append(f"{titles[name]}: not finished in the time; run again {more}.")
        elif name in findings.wanted and name not in findings.sections:
            words.append(f"{titles[name]}: not begun; run again to go on.")
    return words


def _account(findings: Findings) -> list[tuple[str, ...]]:
    """What was computed, and what it took."""
    rows: list[tuple[str, ...]] = []
    for section in SECTIONS:
        if section.name not in findings.wanted:
            continue
        state = findings.section(section.name)
        missing = "failed" if section.name in findings.errors else "not begun"
        words, solver = state.get("status", missing), state.get("solver", "")
        words += f", {solver}" if solver in SHORTFALLS else ""
        took = f"{state.get('products', 0):,}", seconds(state.get("seconds", 0.0))
        rows.append((section.title, words, *took))
    return rows


def _run(findings: Findings) -> list[tuple[str, str]]:
    """Versions, seeds, hashes."""
    model, settings, run = findings.model, findings.settings, findings.runs[-1]
    total = sum(r.get("seconds", 0.0) for r in findings.runs)
    budget = seconds(settings.budget) if math.isfinite(settings.budget) else "none"
    return [
        ("model", model["model"]),
        ("loss function", model["loss_func"]),
        ("matrix", f"{settings.curvature}, {model['dtype']} on {model['device']}"),
        ("seed", str(settings.seed)),
        ("tolerance", f"{settings.tol:g} relative to the norm"),
        ("budget", budget),
        ("runs", f"{len(findings.runs)}, {seconds(total)} in all"),
        ("time of a product", seconds(run.get("seconds_per_product", 0.0))),
        ("finished", run.get("finished", "")),
        ("versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())),
        ("parameters", "sha256 " + model["hash_of_parameters"]),
        ("data", "sha256 " + model["hash_of_data"]),
    ]
