"""Draw how the means and variances of a layer's outputs, or its weights, moved while a network was trained.

Train with `record_mean_var` first; recordings are `<checkpoint_dir>/<dataset>/bayesian/<net_type>/<layer>.sqlite`.
Without a display, pictures are saved.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

import matplotlib
from matplotlib import pyplot
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.figure import Figure

from recording import KINDS, animate_distributions, plot_lines, plot_weights, read_recording
from support import OneLineParser, UserError, atomic_write, report_user_errors, save_figure

LONGEST = 655  # seconds that a GIF can show a frame: 16 bits of hundredths


def draw_distributions(
    filename: str | Path,
    save_dir: str | Path,
    type: str = "mean",
    node_no: int = 0,
    save_plots: bool = False,
    plot_time: float = 0.5,
) -> FuncAnimation:
    """Animate the distribution of a node's output over the course of training.

    Args:
        filename: the recording of the layer.
        save_dir: the folder in which `<layer>_node<node_no>_<type>.gif` is saved.
        type: the moment of the output, 'mean', 'std' or 'variance', whose distribution over the examples of a batch
            is drawn; 'both' draws the normal N(mean, variance).
        node_no: the node, an index into the flattened output of an example.
        save_plots: save the animation. Without it, the animation is shown on the screen; if there is no screen it is
            saved nevertheless, except in a notebook, which shows the returned animation.
        plot_time: seconds per frame, at most 655.

    Returns:
        The animation.

    Raises:
        UserError: the recording cannot be read, the type is unknown, the node does not exist or was not recorded, or
            the file cannot be written.
    """
    recorded = read_recording(filename)
    _check_time(plot_time, LONGEST)
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
    """Plot a moment of a node's output, averaged over the examples of a batch, against epochs.

    Args:
        filename: the recording of the layer.
        save_dir: the folder in which `<layer>_node<node_no>_<type>.png` is saved.
        type: the moment of the output, 'mean', 'std' or 'variance', with the middle 80 % of the examples as a band;
            'both' is the mean ± one standard deviation.
        node_no: the node, an index into the flattened output of an example.
        save_plots: as for `draw_distributions`.
        plot_time: seconds that the picture stays on the screen.

    Returns:
        The figure.

    Raises:
        UserError: as for `draw_distributions`.
    """
    recorded = read_recording(filename)
    _check_time(plot_time)
    figure = _figure(not save_plots and _has_screen(), 7, 4.2)
    plot_lines(figure, recorded, type, node_no)
    _deliver(figure, Path(save_dir) / f"{Path(filename).stem}_node{node_no}_{type}.png", save_plots, plot_time)
    return figure


def draw_weights(filename: str | Path, save_dir: str | Path, save_plots: bool = False, plot_time: float = 5) -> Figure:
    """Plot how the posterior of a layer's weights moved: μ, σ and |μ|/σ, and the filters of a convolution.

    If the layer is not a convolution, the filters are those of the first one that is recorded in the same folder.
    Arguments, result and errors are those of `draw_lineplot`; the file is `<layer>_weights.png`.
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
    """A figure in a window, or one without, to which pyplot keeps no reference."""
    if on_screen:
        return pyplot.figure(figsize=(width, height), layout="constrained")
    return Figure(figsize=(width, height), layout="constrained")


def _has_screen() -> bool:
    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return not _in_notebook() and matplotlib.get_backend().lower() in interactive


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _check_time(plot_time: float, most: float = math.inf) -> None:
    if not (math.isfinite(plot_time) and 0 < plot_time <= most):
        limit = "" if most == math.inf else f" and at most {most}"
        raise UserError(f"plot_time must be a number of seconds above 0{limit}, got {plot_time!r}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--filename", required=True, help="a recording, such as checkpoints/MNIST/bayesian/lenet/fc3.sqlite"
    )
    parser.add_argument(
        "--data_type", choices=KINDS, default="mean", help="moment of the outputs (default: %(default)s)"
    )
    parser.add_argument("--node_no", type=int, default=0, help="index into a flattened output (default: %(default)s)")
    parser.add_argument(
        "--plot_type",
        choices=("lineplot", "distplot", "both", "weights"),
        default="lineplot",
        help="averages against epochs, an animated distribution, both of these, or the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--plot_time",
        type=float,
        help="seconds per frame of an animation (default: 0.5), or that a plot is shown (default: 5)",
    )
    parser.add_argument("--save_plots", action="store_true", help="save instead of showing on the screen")
    parser.add_argument("--save_dir", help="where pictures are saved (default: plots/ beside the recording)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for; a user's mistake exits with code 2."""
    with report_user_errors():
        args = _parse(arguments)
        save_dir = args.save_dir or Path(args.filename).parent / "plots"
        still, moving = (5, 0.5) if args.plot_time is None else (args.plot_time, args.plot_time)
        if args.plot_type == "weights":
            draw_weights(args.filename, save_dir, args.save_plots, still)
        if args.plot_type in ("lineplot", "both"):
            draw_lineplot(args.filename, save_dir, args.data_type, args.node_no, args.save_plots, still)
        if args.plot_type in ("distplot", "both"):
            draw_distributions(args.filename, save_dir, args.data_type, args.node_no, args.save_plots, moving)


if __name__ == "__main__":
    main()
