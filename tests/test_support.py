"""The lock of a folder, and the style of the pictures."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from support import LockedError, figure_style, locked


def test_a_lock_keeps_others_out_until_its_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with locked(folder):
        with pytest.raises(LockedError, match=f"^another run is writing to {folder}: "), locked(folder):
            pass
        with locked(tmp_path):
            pass
    with locked(folder):
        pass
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_lock_outlives_the_processes_that_its_holder_forks(tmp_path: Path) -> None:
    """As the workers of a data loader are, which end after every epoch."""
    with locked(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=print)
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        with pytest.raises(LockedError), locked(tmp_path):
            pass


def test_the_style_is_that_of_the_axes_made_within_it() -> None:
    before = dict(matplotlib.rcParams)

    @figure_style()
    def draw() -> Figure:
        figure = Figure()
        figure.subplots().plot([0, 1])
        return figure

    for _ in range(2):  # a decorated function may be called again
        figure = draw()
        assert dict(matplotlib.rcParams) == before
        figure.draw_without_rendering()  # ticks are made only now
        ax = figure.axes[0]
        assert {name for name, spine in ax.spines.items() if spine.get_visible()} == {"bottom", "left"}
        gridlines = [*ax.get_xgridlines(), *ax.get_ygridlines()]
        assert gridlines and all(line.get_visible() and line.get_alpha() == 0.3 for line in gridlines)
