"""What to know of a model before its curvature is computed.

The way of a number: ``trials`` and ``forecast`` measure it against ``baseline`` and have it
frozen, ``results`` has all of them, ``table`` and ``preflight.html`` say what it means.
"""

from curvop.inspection.baseline import Reference
from curvop.inspection.cautions import Caution
from curvop.inspection.forecast import Forecast
from curvop.inspection.preflight import preflight
from curvop.inspection.problem import Problem
from curvop.inspection.results import Preflight, plain
from curvop.inspection.templates import render
from curvop.inspection.trials import Trial
from curvop.inspection.wording import number, percent, plural, seconds, with_error

__all__ = [
    "Caution",
    "Forecast",
    "Preflight",
    "Problem",
    "Reference",
    "Trial",
    "number",
    "percent",
    "plain",
    "plural",
    "preflight",
    "render",
    "seconds",
    "with_error",
]
