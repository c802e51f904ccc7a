"""What every picture is drawn on, and with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# After Okabe and Ito: told apart with any colour vision, on white and on black. Whatever
# else is drawn takes its colour from the user's style, or is grey.
BLUE, ORANGE, GREEN, PURPLE = "#2A86C8", "#D55E00", "#009E73", "#B66AA0"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
MARKERS = ("o", "s", "^", "D")
DASHES = ("-", "--", "-.", ":")
GREY = "#808080"

CURVATURE = "loss / parameter²"  # unit of what a Hessian has in it


def axes(ax: Any, *, size: tuple[float, float] | None = None) -> Axes:
    """The given axes, or those of a new figure.

    Args:
        ax: What the user passed.
        size: Width and height of a new figure, in inches; by default the user's style.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If ``ax`` is something else.
    """
    try:
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            'curvop.plot draws with matplotlib: pip install "curvop[plot]".'
        ) from error
    if ax is None:
        from matplotlib import pyplot as plt

        return plt.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(
            f"Expected ax as the Axes of one picture, got {type(ax).__name__}. Of several "
            "take one, as in axes[0]."
        )
    return ax


def check_kind(result: Any, kind: type, maker: str) -> None:
    """Refuse what is no result of this kind.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(result, kind):
        raise TypeError(
            f"Expected {kind.__name__}, as {maker} returns it, got {type(result).__name__}."
        )
