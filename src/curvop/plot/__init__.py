"""Pictures of results; they need matplotlib, which is imported when one is drawn."""

from curvop.plot.contours import landscape
from curvop.plot.eigenvalues import spectrum
from curvop.plot.layers import per_layer
from curvop.plot.residual_norms import convergence
from curvop.plot.sharpness import monitor
from curvop.plot.smoothed import density

__all__ = ["convergence", "density", "landscape", "monitor", "per_layer", "spectrum"]
