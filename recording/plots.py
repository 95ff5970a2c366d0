"""Pictures of recorded layers: how distributions of outputs and weights move while a network trains.

Each function draws into a figure of the caller, and neither saves nor shows it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from recording.log import Array, Recorded, find_recordings
from support import BLUE, ORANGE, UserError, figure_style, nearest

KINDS = ("mean", "std", "variance", "both")
FRAMES, POINTS = 60, 30  # at most, of an animation and of a line: neighboring records are pooled
PLAIN = StrMethodFormatter("{x:g}")
LABELS = {"mean": "mean of the output", "std": "standard deviation of the output", "variance": "variance of the output"}
FILTERS, ROW = 32, 8  # of a convolution, at most; more than ROW of them are drawn in two rows


@figure_style()
def animate_distributions(
    figure: Figure, recorded: Recorded, kind: str, node_no: int, plot_time: float
) -> FuncAnimation:
    """Animate the distribution of a moment of a node's output over the examples of a batch.

    The distribution at the start of training stays visible in gray.

    Args:
        figure: to draw into.
        recorded: the recording of the layer.
        kind: the moment, 'mean', 'std' or 'variance'; 'both' draws the normal N(mean, variance) instead, both
            averaged over the examples.
        node_no: the node, an index into the flattened output of an example.
        plot_time: seconds per frame.

    Raises:
        UserError: an unknown kind, or a node that does not exist, was not recorded or is never finite.
    """
    node = _node(recorded, kind, node_no)
    times, means, variances, deviations = _pooled(recorded, node, FRAMES)
    ax = figure.subplots()
    if kind == "both":
        normals = [(float(m.mean()), math.sqrt(v.mean())) for m, v in zip(means, variances, strict=True)]
        ends = [mean + side * std for mean, std in normals for side in (-3.5, 3.5)]
        grid = np.linspace(*_widened(min(ends), max(ends)), 400)
        curves = [_normal(grid, mean, std) for mean, std in normals]
        xlabel = "output"
    else:
        pools = {"mean": means, "std": deviations, "variance": variances}[kind]
        edges = np.linspace(*_widened(*np.quantile(np.concatenate(pools), (0.002, 0.998))), 31)
        grid = np.repeat(edges, 2)[1:-1]
        curves = [np.repeat(np.histogram(np.clip(pool, *edges[[0, -1]]), edges, density=True)[0], 2) for pool in pools]
        xlabel = LABELS[kind]
    ax.fill_between(grid, curves[0], color="0.8", label=f"at the start (epoch {times[0]:.1f})")
    (line,) = ax.plot(grid, curves[0], color=BLUE, linewidth=2)
    top = 1.1 * max(float(curve.max()) for curve in curves)
    ax.set(xlim=(grid[0], grid[-1]), ylim=(0, top), xlabel=xlabel, ylabel="density")
    ax.legend(loc="upper right")

    def draw(frame: int) -> list[Artist]:
        line.set_ydata(curves[frame])
        ax.set_title(f"{_title(recorded, node_no)}: epoch {times[frame]:.1f}")
        return [line]

    draw(0)
    return FuncAnimation(figure, draw, frames=len(curves), interval=1000 * plot_time, repeat=False)


@figure_style()
def plot_lines(figure: Figure, recorded: Recorded, kind: str, node_no: int) -> None:
    """Plot a moment of a node's output, averaged over the examples of a batch, against epochs.

    The band is the middle 80 % of the examples; for `kind` 'both' it is the average mean ± the square root of the
    average variance. Arguments and errors are those of `animate_distributions`.
    """
    node = _node(recorded, kind, node_no)
    times, means, variances, deviations = _pooled(recorded, node, POINTS)
    pools = {"std": deviations, "variance": variances}.get(kind, means)
    average = np.array([pool.mean() for pool in pools])
    if kind == "both":
        deviation = np.sqrt([pool.mean() for pool in variances])
        low, high, band = average - deviation, average + deviation, "± 1 standard deviation"
    else:
        low, high = np.array([np.quantile(pool, (0.1, 0.9)) for pool in pools]).T
        band = "middle 80 % of the examples"
    ax = figure.subplots()
    marker = "o" if len(times) == 1 else None
    ax.fill_between(times, low, high, color=ORANGE, alpha=0.3, linewidth=0, label=band)
    ax.plot(times, average, color=BLUE, linewidth=2, marker=marker, label="average over the examples")
    ax.set(xlabel="epoch", ylabel=LABELS["mean" if kind == "both" else kind], title=_title(recorded, node_no))
    ax.legend(loc="best")


@figure_style()
def plot_weights(figure: Figure, recorded: Recorded, path: Path) -> None:
    """Plot the histograms of μ, σ and |μ|/σ per epoch as heat maps, and below them the filters of a convolution.

    Args:
        figure: to draw into.
        recorded: the recording of the layer.
        path: where it was read from. If the layer is not a convolution, the filters are those of the first
            convolution that is recorded in the same folder: means and standard deviations at the end of the last
            epoch, averaged over input channels.

    Raises:
        UserError: no epoch has been finished.
    """
    if not len(recorded.posterior_epoch):
        raise UserError(f"{path} has no weights yet: they are recorded at the end of an epoch")
    weight = recorded.weights["weight"]
    first = _first_convolution(recorded, path)
    ratios = (3, 1.2 if _filters(first) <= ROW else 1.9) if first else (1,)
    rows = np.asarray(figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)).flat
    ratio = weight.signal_to_noise
    with np.errstate(divide="ignore"):
        panels = (
            (weight.mean, "mean μ", False),
            (np.log10(weight.std), "standard deviation σ", True),
            (np.log10(ratio), "signal-to-noise |μ|/σ", True),
        )
    axes = rows[0].subplots(1, 3)
    for ax, (values, label, logarithmic) in zip(axes, panels, strict=True):
        image = _heat_map(ax, recorded.posterior_epoch, values, logarithmic)
        ax.set(xlabel="epoch", title=label)
    rows[0].colorbar(image, ax=list(axes), label="fraction of the\nfullest bin", ticks=(0, 0.5, 1), aspect=30, pad=0.02)
    rows[0].suptitle(f"{recorded.layer}: posterior of the weights", fontsize=13)
    if first:
        _draw_filters(rows[1], first)


def _heat_map(ax: Axes, epochs: Array, values: Array, logarithmic: bool) -> QuadMesh:
    finite = values[np.isfinite(values)]
    low, high = _widened(*np.quantile(finite, (0.02, 0.998))) if finite.size else (0.0, 1.0)
    bins = min(60, max(20, int(2 * math.sqrt(values.shape[1]))))
    edges = np.linspace(low, high, bins + 1)
    counts = np.array([np.histogram(row[np.isfinite(row)], edges)[0] for row in values], float)
    counts /= np.maximum(counts.max(axis=1, keepdims=True), 1)
    sides = np.append(epochs - 0.5, epochs[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if logarithmic:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(PLAIN)
        ax.yaxis.set_minor_locator(NullLocator())
    return ax.pcolormesh(sides, 10**edges if logarithmic else edges, counts.T, cmap="viridis", vmin=0, vmax=1)


def _draw_filters(figure: SubFigure, recorded: Recorded) -> None:
    weight = recorded.weights["weight"]
    count = _filters(recorded)
    rows = 1 if count <= ROW else 2
    halves = np.asarray(figure.subfigures(1, 2))
    for half, values, label, cmap in (
        (halves[0], weight.mean, "mean μ", "RdBu_r"),
        (halves[1], weight.std, "standard deviation σ", "viridis"),
    ):
        filters = values[-1].reshape(weight.shape)[:count].mean(axis=1)
        filters[~np.isfinite(filters)] = np.nan  # which is drawn as nothing
        axes = list(half.subplots(rows, math.ceil(count / rows), squeeze=False).flat)
        most = float(np.fmax.reduce(np.abs(filters), axis=None, initial=1e-30))
        least = float(np.fmax(np.fmin.reduce(filters, axis=None), most / 1e4))
        norm = Normalize(-most, most) if cmap == "RdBu_r" else LogNorm(least, most)
        for ax in axes:
            ax.axis("off")
        for ax, picture in zip(axes, filters, strict=False):
            image = ax.imshow(picture, cmap=cmap, norm=norm)
        bar = half.colorbar(image, ax=axes, location="bottom", aspect=40, fraction=0.12, pad=0.04, format=PLAIN)
        if isinstance(norm, LogNorm):
            bar.set_ticks(LogLocator(subs=(1, 2, 5)))
            bar.minorticks_off()
        half.suptitle(f"{recorded.layer} filters: {label}", fontsize=11)


def _filters(recorded: Recorded) -> int:
    return min(recorded.weights["weight"].shape[0], FILTERS)


def _first_convolution(recorded: Recorded, path: Path) -> Recorded | None:
    """The recorded layer if its filters can be drawn, or the first such layer among the recordings in its folder."""
    if _has_filters(recorded):
        return recorded
    neighbors = find_recordings(path.parent).values()
    return min(filter(_has_filters, neighbors), key=lambda neighbor: neighbor.order, default=None)


def _has_filters(recorded: Recorded) -> bool:
    weight = recorded.weights["weight"]
    return len(weight.shape) == 4 and weight.whole and len(weight.mean) > 0


def _node(recorded: Recorded, kind: str, node_no: int) -> int:
    """The column of a node of the layer.

    Raises:
        UserError: an unknown kind, a node that does not exist or was not recorded, or a recording without records.
    """
    if kind not in KINDS:
        raise UserError(f"unknown type {kind!r}: did you mean {nearest(kind, KINDS)!r}? Known are {', '.join(KINDS)}")
    total = math.prod(recorded.node_shape)
    if not 0 <= node_no < total:
        raise UserError(f"{recorded.layer} has no node {node_no}: its {total} nodes are 0 to {total - 1}")
    column = int(np.searchsorted(recorded.nodes, node_no))
    if node_no not in recorded.nodes:
        near = recorded.nodes[np.abs(recorded.nodes - node_no).argsort()[:3]]
        raise UserError(
            f"node {node_no} of {recorded.layer} was not recorded ({recorded.kept}): the nearest are "
            f"{', '.join(str(node) for node in sorted(near))}"
        )
    if not len(recorded.epoch):
        raise UserError(f"the recording of {recorded.layer} has no records yet")
    return column


def _pooled(recorded: Recorded, node: int, most: int) -> tuple[list[float], list[Array], list[Array], list[Array]]:
    """Times, means, variances and standard deviations of a node, of at most `most` groups of neighboring records.

    Numbers that are not finite are left out, and so are groups of nothing else: those of a run that diverged.

    Raises:
        UserError: no number is finite.
    """
    count = min(len(recorded.time), most)
    times = [float(pool.mean()) for pool in np.array_split(recorded.time, count)]
    means, variances, deviations = (
        [_numbers(pool) for pool in np.array_split(values[:, :, node], count)]
        for values in (recorded.mean, recorded.variance, recorded.std)
    )
    groups = [
        group for group in zip(times, means, variances, deviations, strict=True) if group[1].size and group[2].size
    ]
    if not groups:
        raise UserError(f"the recording of {recorded.layer} has no finite numbers: the run diverged")
    return tuple(map(list, zip(*groups, strict=True)))  # type: ignore[return-value]


def _numbers(pool: Array) -> Array:
    return np.asarray(pool[np.isfinite(pool)], np.float64)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, widened where it is almost a point."""
    room = max(0.0, 1e-3 * max(abs(low), abs(high), 1e-6) - (high - low) / 2)
    return low - room, high + room


def _normal(grid: Array, mean: float, std: float) -> Array:
    std = max(std, (grid[-1] - grid[0]) / 1e4)  # a variance of 0 is drawn as a spike
    return np.asarray(np.exp(-0.5 * ((grid - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi)))


def _title(recorded: Recorded, node_no: int) -> str:
    if len(recorded.node_shape) == 1:
        return f"{recorded.layer}, node {node_no}"
    place = ", ".join(str(int(index)) for index in np.unravel_index(node_no, recorded.node_shape))
    return f"{recorded.layer}, node {node_no} (at {place})"
