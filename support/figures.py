"""One style for every picture, and pictures written atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, whose colors color-blind readers can tell apart.
COLORS = BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


@contextmanager
def figure_style() -> Iterator[None]:
    """The style of the axes that are made within it, for a `with` statement or as a decorator."""
    from matplotlib import rc_context  # here, so that rooms without pictures need no matplotlib
    from matplotlib.rcsetup import cycler

    with rc_context(
        {
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=[*COLORS, "#56B4E9", "#E69F00", "#000000"]),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    ):
        yield


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file, atomically, and return its path."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path
