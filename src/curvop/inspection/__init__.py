"""What to know of a model before its curvature is computed."""

from curvop.inspection.results import Caution, Forecast, Preflight, Reference, Trial
from curvop.inspection.run import preflight

__all__ = ["Caution", "Forecast", "Preflight", "Reference", "Trial", "preflight"]
