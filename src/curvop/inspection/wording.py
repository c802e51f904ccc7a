"""The words and numbers of a preflight, for text and HTML alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from curvop.inspection.results import Forecast, Matrix, Preflight, Severity, Trial

HEADINGS = (
    "verdict",
    "error",
    "asymmetry",
    "noise",
    "time",
    "memory",
    "set-up",
    "kept",
)


LEGEND = (
    "→ the automatic choice. error: against differences of first derivatives in float64; "
    "of these, at least their own estimate. asymmetry: of uᵀAv and vᵀAu. noise: of two "
    "products. time, memory: of a product, in gradients. set-up, kept: once, to linearize."
)
SIGNS: dict[Severity, str] = {"stop": "✗", "care": "!", "note": "·"}


def summary(p: Preflight) -> str:
    """The verdict on the whole, in a sentence."""
    if p.is_ready:
        matrices = [f.matrix for f in p.forecasts]
        rough = [t.matrix for t in p.trials if t.is_chosen and t.verdict == "rough"]
        text = f"Ready: the automatic choice is right for {_and(matrices)}."
        if rough:
            text += f" Rounding takes digits of {_and(list(dict.fromkeys(rough)))}."
        return text
    stops = [c.what for c in p.cautions if c.severity == "stop"]
    if stops:
        return f"Not ready: {stops[0]}."
    for t in p.trials:
        if t.is_chosen and t.is_in_the_way:
            what = t.reason if t.verdict == "unchecked" and t.reason else t.verdict
            return f"Not ready: the automatic choice for {t.matrix}, {t.way}, is {what}."
    for f in p.forecasts:
        if f.way is None:
            return f"Not ready: {f.matrix}: {f.reason}."
    return "Not ready: nothing works."


def subject(p: Preflight) -> str:
    """What was looked at."""
    return (
        f"{p.model}: {p.num_parameters:,} parameters, {p.dtype} on {p.device}; "
        f"{p.loss} ({p.reduction})"
    )


def circumstances(p: Preflight) -> str:
    """On what it was tried, and the unit of times."""
    size = "one batch" if p.sample_size is None else f"{p.sample_size:,}"
    total = "an unknown number of" if p.num_data is None else f"{p.num_data:,}"
    text = f"Tried on {size} of {total} data"
    if p.num_batches is not None:
        text += f" in {p.num_batches:,} batch{'es' * (p.num_batches != 1)}"
    if p.gradient_seconds is not None:
        text += f"; the unit is their gradient: {seconds(p.gradient_seconds)}"
        if p.gradient_bytes is not None:
            text += f", {size_of(p.gradient_bytes)}"
    return text + "."


def cells(t: Trial) -> tuple[str, ...]:
    """A trial under the headings."""
    return (
        t.verdict,
        scientific(t.error),
        scientific(t.asymmetry),
        scientific(t.noise),
        times(t.gradients),
        times(t.peak_gradients),
        "" if t.setup_seconds is None else seconds(t.setup_seconds),
        "" if t.kept_bytes is None else size_of(t.kept_bytes),
    )


def explains(t: Trial) -> bool:
    """Whether a trial that returned a product has a reason to be told."""
    return t.works and t.verdict in ("rough", "not finite", "unchecked")


def notes(p: Preflight, matrix: Matrix) -> Iterator[str]:
    """What the operator says of its products, and what they were compared with."""
    for f in p.forecasts:
        if f.matrix == matrix and f.way is not None and f.proof is not None:
            yield f"The operator takes {f.way}, {f.proof}"
    is_told = any(t.matrix == matrix and t.verdict == "unchecked" for t in p.trials)
    for r in p.references:
        if r.matrix == matrix and r.method is None and not is_told:
            yield f"Compared with nothing: {r.doubt}"
        elif r.matrix == matrix and r.method is not None and r.dtype != "float64":
            yield f"Compared with {r.method} in {r.dtype}"


def forecast_cells(f: Forecast) -> tuple[str, ...]:
    """The automatic choice, and what it costs."""
    choice = f"{f.way or 'refused'}"
    plain = "?" if f.seconds is None else seconds(f.seconds)
    kept = "?" if f.linearized_seconds is None else seconds(f.linearized_seconds)
    keeps = "?" if f.linearized_bytes is None else size_of(f.linearized_bytes)
    return choice, plain, f.form or "?", kept, keeps


def scientific(x: float | None) -> str:
    """Two digits, as in ``3e-07``; a plain 0."""
    return "" if x is None else "0" if x == 0 else f"{x:.0e}"


def times(x: float | None) -> str:
    """As in ``2.1 ×``."""
    return "" if x is None else f"{x:.1f} ×" if x < 99.95 else f"{x:.0f} ×"


def seconds(x: float) -> str:
    """In the unit that fits."""
    if x >= 5400:
        return f"{x / 3600:.1f} h"
    if x >= 90:
        return f"{x / 60:.1f} min"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if x >= 0.9995 * size:
            return f"{x / size:.3g} {unit}"
    return f"{x / 1e-6:.3g} µs"


def size_of(n: float) -> str:
    """Bytes in the unit that fits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def some(names: tuple[str, ...], most: int = 4) -> str:
    """The first names, and how many more there are."""
    text = ", ".join(names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
