"""The sections of the page: what was found, what it means, how sure it is."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from curvop import plot
from curvop.reporting import derived, figures
from curvop.reporting.cards import DAMPING
from curvop.reporting.elements import beside, figure, paragraph, part, table
from curvop.reporting.findings import Findings
from curvop.reporting.status import unfinished
from curvop.reporting.wording import number, percent, plural, with_error
from curvop.spectra import Density, Eigenpairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 30  # of a figure with one for each block


def eigenvalues(findings: Findings) -> str:
    """Both ends of the spectrum."""
    pairs = derived.both_ends(findings)
    warning = unfinished(findings, "top", "bottom")
    if pairs is None:
        return part("Eigenvalues", warning, _bounds(findings))
    top, bottom = (derived.eigenpairs(findings, name) for name in ("top", "bottom"))
    shown = []
    for name, ends, title in (
        ("top", top, "The largest eigenvalues."),
        ("bottom", bottom, "The smallest eigenvalues."),
    ):
        if ends is None:
            continue
        count = plural(len(ends.values), "eigenvalue")
        lo, hi = number(float(ends.values[0])), number(float(ends.values[-1]))
        alt = f"{count} at the {name}, from {lo} to {hi}"
        wide = float(ends.values[0]) > 0 and float(ends.values[-1] / ends.values[0]) > 30
        svg = figures.picture(name, alt, partial(_spectrum, ends, wide))
        shown.append(figure(svg, f"{title} Bars are residuals."))
    rows = []
    for name, ends in (("largest", top), ("smallest", bottom)):
        if ends is not None:
            order = range(len(ends.values))
            for i, j in enumerate(reversed(order) if name == "largest" else order):
                value, residual = float(ends.values[j]), float(ends.residuals[j])
                rows.append([f"{name} {i + 1}", number(value, 8), number(residual, 2)])
    text = paragraph(
        "Curvature of the loss along its steepest and its least directions. Within the "
        "residual ‖Av − λv‖ of each value there is an eigenvalue of the matrix; for one "
        "that stands apart the error is of the order of its square."
    )
    states = [derived.section(findings, name) for name in ("top", "bottom")]
    counted = sum(state.get("products", 0) for state in states)
    return part(
        "Eigenvalues",
        text,
        warning,
        beside(*shown),
        table(
            ["", "eigenvalue", "residual"],
            rows,
            summary=f"{plural(len(rows), 'value')}, from {plural(counted, 'product')}",
        ),
    )


def _bounds(findings: Findings) -> str:
    """What Ritz values of the density's random vectors tell of the ends."""
    found = derived.density(findings, "linear")
    if found is None:
        return ""
    low, high = number(float(found.nodes.min())), number(float(found.nodes.max()))
    return paragraph(
        "From the random vectors of the density: the largest eigenvalue is at least "
        f"{high}, the smallest at most {low}."
    )


def _spectrum(pairs: Eigenpairs, log: bool, ax: Axes) -> None:
    plot.spectrum(pairs, log=log, ax=ax)


def gradient(findings: Findings) -> str:
    """The gradient in the space of the top eigenvectors."""
    state, shares = derived.section(findings, "gradient"), derived.gradient_shares(findings)
    warning = unfinished(findings, "gradient")
    if not state:
        return part("Gradient", warning)
    if state["norm"] == 0:
        zero = "The gradient is zero: it has no direction to compare with eigenvectors."
        return part("Gradient", paragraph(zero), warning)
    along = number(state["curvature_along"])
    text = paragraph(
        f"The gradient has the norm {number(state['norm'])}; the curvature along it, "
        f"gᵀAg / gᵀg, is {along}. A gradient that lies in the space of a few top "
        "eigenvectors is what one sees at the edge of stability, and where Newton-like "
        "steps differ most from gradient steps."
    )
    picture = ""
    if shares is not None and len(shares):
        N = findings.model["parameters"]
        total = percent(float(shares.sum().clamp(max=1)))
        alt = f"{total} of the squared gradient in the space of {len(shares)} eigenvectors"
        svg = figures.picture("gradient", alt, lambda ax: figures.alignment(shares, N, ax))
        caption = "Share of the squared gradient in the space of the first eigenvectors."
        top = derived.eigenpairs(findings, "top")
        values = [] if top is None else top.values.flip(0).tolist()
        rows = [
            [str(i + 1), number(value), percent(share)]
            for i, (value, share) in enumerate(zip(values, shares.tolist(), strict=True))
        ]
        head = ["eigenvector", "eigenvalue", "share of ‖g‖²"]
        picture = beside(
            figure(svg, caption), table(head, rows, summary=plural(len(rows), "share"))
        )
    return part("Gradient", text, warning, picture)


def sharpness(findings: Findings) -> str:
    """What the optimizer sees, if there is one."""
    given = findings.preconditioner
    if given is None:
        return ""
    remarks = paragraph(" ".join(given["remarks"])) if given["remarks"] else ""
    heading = "Sharpness under the optimizer"
    identity = given["is_identity"]
    pairs = derived.eigenpairs(findings, "top" if identity else "sharpness")
    warning = unfinished(findings, "top" if identity else "sharpness")
    if pairs is None:
        return part(heading, warning, remarks)
    value, residual = float(pairs.values[-1]), float(pairs.residuals[-1])
    what = (
        f"{given['label']} does not divide gradients: its sharpness is the largest "
        f"eigenvalue, {with_error(value, residual)}."
        if identity
        else f"Gradients are divided by P, {given['formula']} ({given['label']}). The "
        f"largest eigenvalue of P⁻¹A, that is of A v = λ P v, is {number(value, 6)}, with "
        f"the residual ‖Av − λPv‖ = {number(residual, 2)}."
    )
    limit = ""
    if given["threshold"]:
        ratio = value / given["threshold"]
        side = "beyond" if ratio > 1 else "below"
        limit = (
            f" Full-batch training is stable on a quadratic up to {given['limit']} = "
            f"{number(given['threshold'])}: the sharpness is {number(ratio, 3)} times "
            f"that, {side} the edge of stability."
        )
    return part(heading, paragraph(what + limit), remarks, warning)


def density(findings: Findings) -> str:
    """All eigenvalues, linear and logarithmic."""
    linear, symlog = (derived.density(findings, kind) for kind in ("linear", "symlog"))
    warning = unfinished(findings, "density")
    if linear is None or symlog is None:
        return part("Spectral density", warning)
    pairs = derived.both_ends(findings)
    p, m = linear.nodes.shape
    text = paragraph(
        f"The distribution of {plural(findings.model['parameters'], 'eigenvalue')}, from "
        f"{plural(p, 'random vector')} with {plural(m, 'Lanczos step')} each. The band is "
        "two standard errors over the vectors; it does not tell what the width of the "
        "Gaussians (a hundredth of the range) blurs."
        + ("" if p > 1 else " One vector gives no band.")
    )
    kinds = (
        ("linear", linear, "Linear axes: where the mass is."),
        ("logarithmic", symlog, "Logarithmic axes, symmetric about zero: tails and bulk."),
    )
    shown = []
    for name, found, caption in kinds:
        draw = partial(_density, found, pairs, found is symlog)
        alt = f"density of the eigenvalues, {name} axes"
        shown.append(figure(figures.picture(f"density-{name}", alt, draw), caption))
    return part("Spectral density", text, warning, beside(*shown))


def _density(found: Density, pairs: Eigenpairs | None, log: bool, ax: Axes) -> None:
    plot.density(found, pairs=pairs, log=log, ax=ax)


def dimension(findings: Findings) -> str:
    """Effective dimension against damping."""
    found = derived.dimensions(findings)
    other = "dimension" in findings.wanted
    warning = unfinished(findings, "dimension") if other else ""
    if found is None:  # without a section of its own, the density says why
        return part("Effective dimension", warning)
    N = findings.model["parameters"]
    if float(found.values.max()) <= 0:
        none = "No curvature is positive: the effective dimension is zero."
        return part("Effective dimension", paragraph(none), warning)
    matrix = " of the generalised Gauss-Newton matrix, which is positive semi-definite"
    if not other:
        matrix = "" if findings.psd else ", where negative eigenvalues count as zero"
    text = paragraph(
        f"d(λ) = Σ λᵢ / (λᵢ + λ){matrix}: the number of directions in which the curvature "
        "exceeds the damping λ, or the precision of a Gaussian prior. Truncation of the "
        "Lanczos runs is in the error."
    )
    mid = int((found.damping / found.damping[-1] - DAMPING).abs().argmin())
    alt = (
        f"effective dimension falling with the damping, {number(float(found.values[mid]))} "
        f"at {number(float(found.damping[mid]), 3)}"
    )
    svg = figures.picture(
        "dimension", alt, lambda ax: figures.effective_dimension(found, N, ax)
    )
    rows = [
        [
            number(float(found.damping[i]), 3),
            with_error(float(found.values[i]), float(found.standard_error[i])),
        ]
        for i in range(0, len(found.damping), 5)
    ]
    return part(
        "Effective dimension",
        text,
        warning,
        beside(
            figure(svg, "Effective dimension against damping."),
            table(["damping", "effective dimension"], rows),
        ),
    )


def layers(findings: Findings) -> str:
    """Traces of the blocks."""
    traces = derived.traces(findings)
    warning = unfinished(findings, "traces")
    total = derived.trace(findings)
    if not traces and total is None:
        return part("Traces of the layers", warning)
    text = ""
    if total is not None:
        text = f"The trace is {with_error(total.value, total.standard_error)}. "
    if not traces:
        return part("Traces of the layers", paragraph(text), warning)
    sizes = {n: math.prod(shape) for n, shape in findings.model["blocks"].items()}
    text += (
        "The trace of each parameter's diagonal block says where the curvature sits: "
        "large ones are the layers that suffer most from pruning, quantisation or noise. "
        "From random signs (Hutchinson); bars are two standard errors."
    )
    ranked = sorted(traces, key=lambda name: -abs(traces[name].value))[:MOST_BARS]
    drawn = {name: traces[name] for name in traces if name in ranked}
    if len(drawn) < len(traces):
        text += f" The figure has the {len(drawn)} largest of {len(traces)}."
    largest = ranked[0]
    alt = f"trace of {len(drawn)} parameters; the largest is that of {largest}"
    names = [_shortened(name) for name in drawn]
    svg = figures.picture(
        "layers",
        alt,
        lambda ax: plot.per_layer(drawn, names=names, ax=ax),
        height=1.1 + 0.26 * max(len(drawn), 4),
    )
    rows = [
        [
            name,
            " × ".join(map(str, findings.model["blocks"].get(name, []))) or "scalar",
            with_error(t.value, t.standard_error),
            number(t.value / sizes.get(name, 1), 3),
        ]
        for name, t in traces.items()
    ]
    return part(
        "Traces of the layers",
        paragraph(text),
        warning,
        beside(
            figure(svg, "Traces of the diagonal blocks."),
            table(
                ["parameter", "shape", "trace", "mean eigenvalue"],
                rows,
                summary=plural(len(rows), "parameter"),
            ),
        ),
    )


def _shortened(name: str, most: int = 24) -> str:
    """The end of a name tells more than its beginning."""
    return name if len(name) <= most else "…" + name[1 - most :]
