"""Pages from templates: Jinja's, with numbers in words as filters."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from curvop.inspection import wording

FILTERS = {
    f.__name__: f
    for f in (
        wording.number,
        wording.percent,
        wording.plural,
        wording.seconds,
        wording.some,
        wording.with_error,
    )
}


def render(room: str, name: str, **values: Any) -> str:
    """A template of a room, filled in; what is not marked as safe is escaped.

    Args:
        room: The package that has the template.
        name: Its file.
        **values: Its variables.
    """
    import jinja2  # which comes with torch; no operator needs it

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= FILTERS
    text = files(room).joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)
