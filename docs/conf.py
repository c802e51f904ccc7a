"""Configuration of the documentation."""

import sys
from pathlib import Path

import curvop

sys.path.insert(0, str(Path(__file__).parent))  # mathml, speed_page

project = "curvop"
author = "The curvop authors"
copyright = "2026, The curvop authors"
version = release = curvop.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
    "speed_page",
]
exclude_patterns = ["_build", "_generated"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"curvop {version}"
html_static_path = ["_static"]
html_css_files = ["curvop.css"]
html_copy_source = False
html_show_sourcelink = False
