"""How far the report came, what it took, and with what it was made."""

from __future__ import annotations

import math
from html import escape

from curvop.reporting import derived
from curvop.reporting.elements import paragraph, part, table
from curvop.reporting.findings import Findings, duration
from curvop.reporting.sections import SECTIONS

SHORTFALLS = ("maxiter", "inaccurate")  # of a solver that came to its end


def unfinished(findings: Findings, *names: str) -> str:
    """What the reader must know of sections that did not come to their end."""
    words = []
    titles = {section.name: section.title for section in SECTIONS}
    for name in names:
        if name in findings.errors:
            words.append(f"{titles[name]} failed: {findings.errors[name]}")
        elif derived.section(findings, name).get("status") == "incomplete":
            more = "to go on"
            if not derived.section(findings, name)["resumable"]:
                more = "with a larger budget"
            words.append(f"{titles[name]}: not finished in the time; run again {more}.")
        elif name in findings.wanted and name not in findings.sections:
            words.append(f"{titles[name]}: not begun; run again to go on.")
    if not words:
        return ""
    return '<div class="note">' + "".join(paragraph(w) for w in words) + "</div>"


def account(findings: Findings) -> str:
    """What was computed, and what it took."""
    rows = []
    for section in SECTIONS:
        if section.name not in findings.wanted:
            continue
        state = findings.sections.get(section.name)
        if state is None:
            state = {"status": "failed" if section.name in findings.errors else "not begun"}
        solver = state.get("solver", "")
        words = state["status"] + (f", {solver}" if solver in SHORTFALLS else "")
        rows.append(
            [
                section.title,
                words,
                f"{state.get('products', 0):,}",
                duration(state.get("seconds", 0.0)),
            ]
        )
    return part("How it was computed", table(["", "status", "products", "time"], rows))


def run_record(findings: Findings) -> str:
    """Versions, seeds, hashes."""
    model, settings, run = findings.model, findings.settings, findings.runs[-1]
    budget = settings.budget
    total = sum(r.get("seconds", 0.0) for r in findings.runs)
    entries = [
        ("model", model["model"]),
        ("loss function", model["loss_func"]),
        ("matrix", f"{settings.curvature}, {model['dtype']} on {model['device']}"),
        ("seed", str(settings.seed)),
        ("tolerance", f"{settings.tol:g} relative to the norm"),
        ("budget", duration(budget) if math.isfinite(budget) else "none"),
        ("runs", f"{len(findings.runs)}, {duration(total)} in all"),
        ("time of a product", duration(run.get("seconds_per_product", 0.0))),
        ("finished", run.get("finished", "")),
        ("versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())),
        ("parameters", "sha256 " + model["hash_of_parameters"]),
        ("data", "sha256 " + model["hash_of_data"]),
    ]
    inside = "".join(
        f"<dt>{escape(key)}</dt><dd{' class=hash' if 'sha256' in value else ''}>"
        f"{escape(value)}</dd>"
        for key, value in entries
    )
    return part("Run record", f'<dl class="record">{inside}</dl>')
