"""Reports of the curvature of a model, and the command line that makes them.

The way of a number: ``sections`` measures it, ``computation`` keeps it, ``findings`` has it
frozen, ``page`` puts it into rows and figures, ``report.html`` says what it means.
"""

from curvop.reporting.command import main
from curvop.reporting.report import Report, report

__all__ = ["Report", "main", "report"]
