"""Numbers, counts and errors as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from curvop.derivatives import first_line

MINUS, THIN = "−", "\u202f"


def number(x: float | None, digits: int = 4) -> str:
    """With so many significant digits; ``–`` for what is not known.

    >>> number(12.34567), number(-0.00001234), number(12670.3)
    ('12.35', '−1.234e−05', '12,670')
    """
    if x is None or math.isnan(x):
        return "–"
    text = f"{x:,.0f}" if 10**digits <= abs(x) < 1e7 else f"{x:.{digits}g}"
    return text.replace("-", MINUS)


def with_error(x: float | None, error: float | None) -> str:
    """As precise as its error allows.

    >>> with_error(12.34567, 0.021), with_error(3.0, 0.0)
    ('12.346 ± 0.021', '3')
    """
    if x is None or error is None or math.isnan(error) or math.isnan(x):
        return number(x)
    if error == 0 or abs(x) > 1e5 * error:
        return number(x, 6)
    if not 1e-4 <= max(abs(x), error) < 1e6 or error < 1e-6:
        return f"{number(x)} ± {number(error, 2)}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{x:.{decimals}f} ± {error:.{decimals}f}".replace("-", MINUS)


def scientific(x: float | None) -> str:
    """One digit, as in ``3e-07``; a plain 0."""
    return "" if x is None else "0" if x == 0 else f"{x:.0e}"


def times(x: float | None) -> str:
    """As in ``2.1 ×``."""
    return "" if x is None else f"{x:.1f} ×" if x < 99.95 else f"{x:.0f} ×"


def percent(share: float) -> str:
    """A share in percent, with a narrow space.

    >>> percent(0.1234).split(), percent(0.00012).split()
    (['12.3', '%'], ['0.012', '%'])
    """
    return f"{100 * share:.3g}{THIN}%"


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


def plural(n: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "product"), plural(1200, "batch")
    ('1 product', '1,200 batches')
    """
    ending = "" if n == 1 else "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}{ending}"


def some(names: tuple[str, ...], most: int = 4) -> str:
    """The first names, and how many more there are."""
    text = ", ".join(names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def all_of(names: Sequence[str]) -> str:
    """As in ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def explained(error: BaseException) -> str:
    """The kind of an error and what it says, in one line.

    >>> explained(KeyError("a")), explained(RuntimeError())
    ("KeyError: 'a'", 'RuntimeError')
    """
    kind, line = type(error).__name__, shortened(error)
    return line if line == kind else f"{kind}: {line}"


def shortened(error: BaseException, length: int = 160) -> str:
    """What an error says, in one line of so many characters."""
    line = first_line(error).rstrip()
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
