"""The page: one file that needs nothing else."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from curvop.reporting import figures, parts, status
from curvop.reporting.cards import cards
from curvop.reporting.findings import Findings
from curvop.reporting.wording import number, plural

WORDS = {
    "complete": ("", "complete"),
    "incomplete": ("open", "incomplete: the time was up"),
    "interrupted": ("open", "interrupted"),
}
MATRICES = {"hessian": "Hessian", "ggn": "Generalised Gauss-Newton matrix"}


def page(findings: Findings) -> str:
    """The report as HTML."""
    body = "\n".join(
        [
            _header(findings),
            cards(findings),
            parts.eigenvalues(findings),
            parts.sharpness(findings),
            parts.density(findings),
            parts.dimension(findings),
            parts.layers(findings),
            parts.gradient(findings),
            status.account(findings),
            status.run_record(findings),
        ]
    )
    css = files("curvop.reporting").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (figures.colours(body, dark=dark) for dark in (False, True))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="curvop">
<title>Curvature of {escape(findings.settings.title)}</title>
<link rel="icon" href="data:,">
<style>
{css}
:root {{ {light} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
</style>
</head>
<body>
<main>
{body}
</main>
<footer>Written by curvop. All numbers of this page are in <code>report.json</code>, next to
it.</footer>
</body>
</html>
"""


def _header(findings: Findings) -> str:
    model, settings = findings.model, findings.settings
    kind, words = WORDS[findings.status]
    failed = "; some sections failed" if findings.errors else ""
    badge = f'<span class="status {kind}">{escape(words + failed)}</span>'
    about = (
        f"{MATRICES[settings.curvature]} of {model['model']}, "
        f"{plural(model['parameters'], 'parameter')} in "
        f"{plural(len(model['blocks']), 'tensor')}, over "
        f"{model['data']:,} data in {plural(model['batches'], 'batch')}"
    ).replace("batchs", "batches")
    loss = f"loss {number(model['loss'], 6)}"
    notes = ""
    if findings.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in findings.notes)
        notes = f'<div class="note"><p>To be aware of:</p><ul>{items}</ul></div>'
    return (
        f"<header><h1>Curvature of {escape(settings.title)}</h1>\n"
        f"<p>{escape(about)}; {escape(loss)}. {badge}</p></header>\n{notes}"
    )
