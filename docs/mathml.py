"""Formulas as MathML, which browsers draw by themselves: no script, no network.

A Sphinx extension around the converter of docutils.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from docutils.utils.math.unichar2tex import uni2tex_table
from sphinx.util.logging import getLogger

LOG = getLogger(__name__)

# what the converter does not read, in words that it does
WORDS = {
    "²": "^2",
    "·": r"\cdot ",
    "⊤": r"\top ",
    "⋮": r"\vdots ",
    "⋯": r"\cdots ",
    "ℝ": r"\mathbb{R}",
    r"\dots": r"\ldots",
    r"\big": "",  # brackets of another size
    r"\Big": "",
}
ACCENT = re.compile(r"(\\(?:bar|hat|tilde))\s*(\\[a-zA-Z]+|\{[^{}]*\}|\w)")
DIGITS = re.compile(r"\\[td]?frac(\d)(\d)")


def inline(self: Any, node: nodes.Element) -> None:
    """A formula in a line."""
    self.body.append(_mathml(node.astext(), False))
    raise nodes.SkipNode


def block(self: Any, node: nodes.Element) -> None:
    """A formula of its own."""
    self.body.append(f'<div class="math">{_mathml(node.astext(), True)}</div>')
    raise nodes.SkipNode


def _mathml(tex: str, as_block: bool) -> str:
    for sign, word in WORDS.items():
        tex = tex.replace(sign, word)
    tex = DIGITS.sub(r"\\frac{\1}{\2}", tex.translate(uni2tex_table))
    tex = ACCENT.sub(r"{\1{\2}{}}", tex)  # or else an index goes under the accent's letter
    try:
        return tex2mathml(tex, as_block=as_block)
    except (ValueError, SyntaxError) as error:
        LOG.warning("formula not understood: %s in %s", error, tex)
        return f"<code>{escape(tex)}</code>"


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
