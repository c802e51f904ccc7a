"""Numbers as people read them."""

from __future__ import annotations

import math

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


def percent(share: float) -> str:
    """A share in percent, with a narrow space.

    >>> percent(0.1234).split(), percent(0.00012).split()
    (['12.3', '%'], ['0.012', '%'])
    """
    return f"{100 * share:.3g}{THIN}%"


def plural(n: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "product"), plural(1200, "product")
    ('1 product', '1,200 products')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
