"""Draw how the mean and variance of a layer's outputs, or its weights, moved while a network trained.

Train with `record_mean_var` first; the logs are `<checkpoint_dir>/<dataset>/bayesian/<net_type>/<layer>.h5`.
Without a display the pictures are saved.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.figure import Figure

from recording.plots import KINDS, animate_distributions, plot_lines, plot_weights
from recording.recorder import read_recording
from support import OneLineParser, UserError, atomic_write, report_user_errors, save_figure


def draw_distributions(
    filename: str | Path,
    save_dir: str | Path,
    type: str = "mean",
    node_no: int = 0,
    save_plots: bool = False,
    plot_time: float = 0.5,
) -> FuncAnimation:
    """Animate the distribution of a node of a recorded layer over the course of training.

    Args:
        filename: the layer's log.
        save_dir: where `<layer>_node<node_no>_<type>.gif` goes.
        type: of which moment of the output: 'mean', 'std' or 'variance', over the examples of a batch;
            'both' draws the normal that the mean and the variance make.
        node_no: the node, an index into the flattened output of an example.
        save_plots: save the animation. Without it, it is shown on the screen; where there is no screen it is
            saved all the same, except in a notebook, which shows what is returned.
        plot_time: seconds a frame.

    Raises:
        UserError: the log, the type or the node is not there, or nothing can be saved.
    """
    recorded = read_recording(filename)
    _check_time(plot_time)
    on_screen = not save_plots and _has_screen()
    figure = _figure(on_screen, 7, 4.2)
    animation = animate_distributions(figure, recorded, type, node_no, plot_time)
    if on_screen:
        pyplot.show(block=False)
        frames = len(list(animation.new_frame_seq()))
        pyplot.pause(plot_time * (frames + 1))
        pyplot.close(figure)
    elif save_plots or not _in_notebook():
        path = Path(save_dir) / f"{Path(filename).stem}_node{node_no}_{type}.gif"
        with atomic_write(path) as temporary:
            animation.save(str(temporary), PillowWriter(fps=1 / plot_time), dpi=100)  # type: ignore[arg-type]
        print(f"saved {path}")
    return animation


def draw_lineplot(
    filename: str | Path,
    save_dir: str | Path,
    type: str = "mean",
    node_no: int = 0,
    save_plots: bool = False,
    plot_time: float = 5,
) -> Figure:
    """Plot a moment of a node of a recorded layer, averaged over the batch, against epochs, with a band.

    Args:
        type: of which moment of the output: 'mean', 'std' or 'variance', with the middle 80 % of the
            examples as the band; 'both' is the mean with one standard deviation to either side.
        plot_time: seconds that the picture stays on the screen.

    The other arguments, and what is raised, are as for `draw_distributions`; the file is
    `<layer>_node<node_no>_<type>.png`.
    """
    recorded = read_recording(filename)
    _check_time(plot_time)
    figure = _figure(not save_plots and _has_screen(), 7, 4.2)
    plot_lines(figure, recorded, type, node_no)
    _deliver(figure, Path(save_dir) / f"{Path(filename).stem}_node{node_no}_{type}.png", save_plots, plot_time)
    return figure


def draw_weights(filename: str | Path, save_dir: str | Path, save_plots: bool = False, plot_time: float = 5) -> Figure:
    """Plot how the posterior of a recorded layer's weights moved: μ, σ and |μ|/σ, and a convolution's filters.

    The filters are the layer's own or, if it is no convolution, the first one's among the logs beside it. The
    arguments, and what is raised, are as for `draw_lineplot`; the file is `<layer>_weights.png`.
    """
    recorded = read_recording(filename)
    _check_time(plot_time)
    figure = _figure(not save_plots and _has_screen(), 10, 6)
    plot_weights(figure, recorded, Path(filename))
    _deliver(figure, Path(save_dir) / f"{Path(filename).stem}_weights.png", save_plots, plot_time)
    return figure


def _deliver(figure: Figure, path: Path, save_plots: bool, plot_time: float) -> None:
    if not save_plots and _has_screen():
        pyplot.show(block=False)
        pyplot.pause(plot_time)
        pyplot.close(figure)
    elif save_plots or not _in_notebook():
        save_figure(figure, path)
        print(f"saved {path}")


def _figure(on_screen: bool, width: float, height: float) -> Figure:
    """A figure in a window, or one that needs none and that nothing but its user holds on to."""
    if on_screen:
        return pyplot.figure(figsize=(width, height), layout="constrained")
    return Figure(figsize=(width, height), layout="constrained")


def _has_screen() -> bool:
    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return not _in_notebook() and matplotlib.get_backend().lower() in interactive


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _check_time(plot_time: float) -> None:
    if not (math.isfinite(plot_time) and plot_time > 0):
        raise UserError(f"plot_time must be a number of seconds above 0, got {plot_time!r}")


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--filename", required=True, help="a log, such as checkpoints/MNIST/bayesian/lenet/fc3.h5")
    parser.add_argument("--data_type", choices=KINDS, default="mean", help="of the outputs (now %(default)s)")
    parser.add_argument("--node_no", type=int, default=0, help="index into a flattened output (now %(default)s)")
    parser.add_argument(
        "--plot_type",
        choices=("lineplot", "distplot", "both", "weights"),
        default="lineplot",
        help="averages over epochs, an animated distribution, both of these, or the weights (now %(default)s)",
    )
    parser.add_argument(
        "--plot_time", type=float, help="seconds a frame (0.5) or, of a plot that stands still, in all (5)"
    )
    parser.add_argument("--save_plots", action="store_true", help="save instead of showing on the screen")
    parser.add_argument("--save_dir", help="where pictures are saved (now plots beside the log)")
    return parser.parse_args(given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for; a user's mistake exits with code 2."""
    with report_user_errors():
        asked = _arguments(arguments)
        save_dir = asked.save_dir or Path(asked.filename).parent / "plots"
        still, moving = (5, 0.5) if asked.plot_time is None else (asked.plot_time, asked.plot_time)
        if asked.plot_type == "weights":
            draw_weights(asked.filename, save_dir, asked.save_plots, still)
        if asked.plot_type in ("lineplot", "both"):
            draw_lineplot(asked.filename, save_dir, asked.data_type, asked.node_no, asked.save_plots, still)
        if asked.plot_type in ("distplot", "both"):
            draw_distributions(asked.filename, save_dir, asked.data_type, asked.node_no, asked.save_plots, moving)


if __name__ == "__main__":
    main()
