"""Reports of the curvature of a model, and the command line that makes them."""

from curvop.reporting.api import Report, report

__all__ = ["Report", "report"]
