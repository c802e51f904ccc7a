"""Pictures of results; they need matplotlib, which is imported when one is drawn."""

from curvop.plot.canvas import BLUE, GREY, ORANGE
from curvop.plot.eigenvalues import density, spectrum
from curvop.plot.landscape import Landscape, landscape, loss_landscape
from curvop.plot.layers import per_layer
from curvop.plot.residual_norms import convergence
from curvop.plot.sharpness import monitor

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "Landscape",
    "convergence",
    "density",
    "landscape",
    "loss_landscape",
    "monitor",
    "per_layer",
    "spectrum",
]
