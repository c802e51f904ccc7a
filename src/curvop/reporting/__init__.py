"""Reports of the curvature of a model, and the command line that makes them."""

from curvop.reporting.command import main
from curvop.reporting.report import Report, report

__all__ = ["Report", "main", "report"]
