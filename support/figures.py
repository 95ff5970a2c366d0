"""One palette for every picture, and pictures that are whole or absent."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from support.files import atomic_write

# Okabe & Ito's, told apart by color-blind readers too.
COLORS = BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def save_figure(figure: Figure, path: Path) -> Path:
    """The figure as a PNG file, whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path
