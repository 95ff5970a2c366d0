"""Pictures of what a network knows and does not know, each a PNG file that is written atomically."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from images import CORRUPTIONS, SEVERITIES, corrupt
from inference.evaluation import SHIFTS, ImageSets
from likelihoods import SCORES, Predictive, RegressionPredictive, ece, reliability, risk_coverage, risk_coverage_area
from support import BLUE, COLORS, ORANGE, figure_style, save_figure

DASHES = ("-", "--", ":", "-.")
UNITS = {
    "total entropy": "nats",
    "mutual information": "nats",
    "max probability": "1 − largest probability",
    "energy": "−log Σ exp(logits), nats",
    "variation ratio": "fraction of samples",
}
QUANTITIES = {
    "accuracy": "accuracy",
    "nll": "NLL (nats per example)",
    "ece": "ECE",
    "entropy": "mean entropy (nats)",
}  # of a network under corruption


@figure_style()
def plot_scores(path: Path, sets: Mapping[str, Predictive], title: str) -> Path:
    """A histogram of every score for each set of images, the known ones first."""
    figure = Figure(figsize=(15, 6), layout="constrained")
    axes = figure.subplots(2, 5).flat
    lowest = 0.5 / max(len(predictive.probs) for predictive in sets.values())  # half of one image
    styles = list(zip(sets, cycle(COLORS), cycle(DASHES), strict=False))
    for ax, (name, score) in zip(axes, SCORES.items(), strict=False):
        values = [score(predictive).numpy() for predictive in sets.values()]
        low, high = min(0.0, *(value.min() for value in values)), max(value.max() for value in values)
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for value, (label, color, dash) in zip(values, styles, strict=True):
            weights = np.full(len(value), 1 / len(value))
            ax.hist(value, edges, weights=weights, alpha=0.35, color=color, label=label)
            ax.hist(value, edges, weights=weights, histtype="step", color=color, linestyle=dash, linewidth=1.5)
        if low == high:
            ax.text(0.5, 0.5, "0 for every image", ha="center", transform=ax.transAxes)
        ax.set(title=name, xlabel=UNITS.get(name, "trace of the covariance"), yscale="log", ylim=(lowest, 1.5))
    for ax in figure.axes[::5]:
        ax.set_ylabel("fraction of images")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.axes[9].axis("off")
    figure.axes[9].legend(handles, labels, loc="center", fontsize=13)
    figure.suptitle(title)
    return save_figure(figure, path)


@figure_style()
def plot_reliability(path: Path, probs: Mapping[str, Tensor], labels: Tensor) -> Path:
    """Accuracy against confidence per bin, one panel per network; below, the number of predictions per bin."""
    figure = Figure(figsize=(4.4 * len(probs), 5), layout="constrained")
    columns = figure.subplots(2, len(probs), squeeze=False, height_ratios=(3, 1), sharex=True, sharey="row").T
    for (above, below), (name, network_probs), color in zip(columns, probs.items(), cycle(COLORS), strict=False):
        bins = reliability(network_probs, labels)
        confidence, correct, count = (values.numpy() for values in (bins.confidence, bins.accuracy, bins.count))
        above.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
        above.plot(confidence, correct, "o-", color=color)
        above.set(title=f"{name}: ECE {ece(network_probs, labels):.4f}", ylabel="accuracy", ylim=(-0.02, 1.02))
        below.bar(confidence, count, 0.04, color=color)
        below.set(xlabel="confidence", ylabel="images", yscale="log", xlim=(0, 1.02), ylim=(0.5, 2 * len(labels)))
    return save_figure(figure, path)


@figure_style()
def plot_risk_coverage(path: Path, predictives: Mapping[str, Predictive], labels: Tensor) -> Path:
    """Error rate of the most certain predictions (by total entropy) against the fraction of them that is kept."""
    figure = Figure(figsize=(5.4, 4), layout="constrained")
    ax = figure.subplots()
    for (name, predictive), color, dash in zip(predictives.items(), cycle(COLORS), cycle(DASHES), strict=False):
        wrong = predictive.labels != labels
        coverage, risk = risk_coverage(predictive.entropy, wrong)
        area = risk_coverage_area(predictive.entropy, wrong)
        ax.plot(coverage.numpy(), 100 * risk.numpy(), dash, color=color, label=f"{name} (area {area:.2e})")
    ax.set(xlabel="coverage", ylabel="error among those kept (%)", xlim=(0, 1), ylim=(0, None))
    ax.legend()
    return save_figure(figure, path)


@figure_style()
def plot_sheet(
    path: Path, sets: Mapping[str, tuple[Tensor, Predictive]], classes: Sequence[str], count: int = 6
) -> Path:
    """The most and the least certain images of each set, above their class probabilities as bars.

    Above each image are its two most probable classes, with their probabilities, and its total entropy.

    Args:
        path: of the PNG file.
        sets: by name, uint8 images [n, channels, height, width] and their predictive.
        classes: the names of the classes, by label.
        count: how many of the most certain images, and of the least.
    """
    figure = Figure(figsize=(1.5 * count + 1, 6.4 * len(sets)), layout="constrained")
    grid = figure.subplots(4 * len(sets), count, squeeze=False, height_ratios=(1.4, 1) * 2 * len(sets))
    for block, (name, (images, predictive)) in enumerate(sets.items()):
        order = predictive.entropy.argsort(stable=True)
        ends = (("most certain", order[:count]), ("least certain", order.flip(0)[:count]))
        for row, (certainty, chosen) in enumerate(ends):
            pictures, bars = grid[4 * block + 2 * row], grid[4 * block + 2 * row + 1]
            for column, index in enumerate(chosen.tolist()):
                pixels = images[index].permute(1, 2, 0).squeeze(-1).numpy()
                pictures[column].imshow(pixels, cmap="grey", vmin=0, vmax=255)
                pictures[column].axis("off")
                nats = float(predictive.entropy[index])
                likeliest = predictive.probs[index].topk(2)
                answers = (
                    f"{classes[label][:12]} {probability:.2f}"
                    for probability, label in zip(*(values.tolist() for values in likeliest), strict=True)
                )
                certainty_in_nats = f"{nats:.2f} nats" if nats >= 0.005 else f"{nats:.0e} nats"
                pictures[column].set_title("\n".join((*answers, certainty_in_nats)), fontsize=8)
                bars[column].bar(range(len(classes)), predictive.probs[index].numpy(), color=COLORS[row])
                bars[column].grid(False)
                bars[column].set(ylim=(0, 1.03), yticks=[], xticks=[])
                labelled = range(len(classes)) if len(classes) <= 10 else [int(predictive.labels[index])]
                bars[column].set_xticks(
                    labelled, [classes[label][: 4 if len(labelled) > 1 else 12] for label in labelled], fontsize=7
                )
            if len(chosen):
                bars[0].set_yticks([0, 1], ["0", "1"], fontsize=7)
                bars[0].set_ylabel("probability", fontsize=8, labelpad=-2)
                pictures[0].text(
                    -0.12, 0.5, f"{name}\n{certainty}", rotation=90, va="center", ha="right",
                    transform=pictures[0].transAxes,
                )  # fmt: skip
            for unused in [*pictures[len(chosen) :], *bars[len(chosen) :]]:
                unused.axis("off")
    return save_figure(figure, path)


@figure_style()
def plot_corruptions(path: Path, image: Tensor, kinds: Collection[str] = tuple(CORRUPTIONS), seed: int = 0) -> Path:
    """An image under kinds of corruption, a strip per kind: as it is, then at each severity.

    Args:
        path: of the PNG file.
        image: uint8 [channels, height, width].
        kinds: as for `images.corrupt`.
        seed: as for `images.corrupt`.
    """
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(14 * columns / 3, rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for ax, kind in zip(panels.flat, kinds, strict=False):
        shown = [F.pad(corrupt(image[None], kind, severity, seed)[0], [1] * 4, value=255) for severity in SEVERITIES]
        strip = np.concatenate([each.permute(1, 2, 0).squeeze(-1).numpy() for each in shown], 1)
        ax.imshow(strip, cmap="grey", vmin=0, vmax=255)
        ax.set_title(kind.replace("_", " "), fontsize=10)
    for ax in panels.flat:
        ax.axis("off")
    return save_figure(figure, path)


@figure_style()
def plot_under_corruptions(
    path: Path, corruptions: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], quantity: str
) -> Path:
    """One of `QUANTITIES` against the severity, a panel per kind of corruption and a line per network.

    Args:
        path: of the PNG file.
        corruptions: by network, of `inference.evaluation.under_corruptions`.
        quantity: a key of `QUANTITIES`.
    """
    kinds = list(next(iter(corruptions.values())))
    columns = min(5, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(2.4 * columns + 0.6, 2 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, kind in zip(panels.flat, kinds, strict=False):
        for (network, rows_by_kind), color, dash in zip(
            corruptions.items(), cycle(COLORS), cycle(DASHES), strict=False
        ):
            points = rows_by_kind[kind]
            ax.plot([p["shift"] for p in points], [p[quantity] for p in points], dash, color=color, label=network)
        ax.set_title(kind.replace("_", " "), fontsize=10)
    for ax in list(panels.flat)[len(kinds) :]:
        ax.axis("off")
    panels[0, 0].legend(fontsize=8)
    figure.supxlabel("severity", fontsize=11)
    figure.supylabel(QUANTITIES[quantity], fontsize=11)
    return save_figure(figure, path)


@figure_style()
def plot_shift(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], label: str) -> Path:
    """Accuracy and uncertainty against the severity of a shift.

    Args:
        path: of the PNG file.
        rows: by network, its rows of `inference.evaluation.under_shift`.
        label: of the axis of the severity.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    quantities = (
        ("accuracy", "accuracy"),
        ("entropy", "total entropy (nats)"),
        ("mutual_information", "mutual information (nats)"),
    )
    for ax, (key, name) in zip(axes, quantities, strict=True):
        for (network, points), color, dash in zip(rows.items(), cycle(COLORS), cycle(DASHES), strict=False):
            ax.plot(
                [p["shift"] for p in points], [p[key] for p in points], dash, marker="o", color=color, label=network
            )
        ax.set(xlabel=label, ylabel=name, ylim=(0, None))
    axes[0].legend()
    return save_figure(figure, path)


def plot_evaluation(
    folder: Path,
    report: Mapping[str, Any],
    predictives: Mapping[str, Mapping[str, Predictive]],
    images: ImageSets,
    net_type: str,
) -> list[Path]:
    """Every picture of an evaluation: scores, reliability, risk against coverage, images, shifts, corruptions.

    Args:
        folder: where the pictures go.
        report: of `inference.evaluate`.
        predictives: of `inference.evaluate`.
        images: known and unknown, as for `inference.evaluate`.
        net_type: the architecture of the networks, for titles.

    Returns:
        The paths of the pictures.
    """
    known = {network: sets[images.name] for network, sets in predictives.items()}
    probs = {network: predictive.probs for network, predictive in known.items()}
    paths = [
        *(
            plot_scores(folder / f"scores_{network}.png", sets, f"{network} {net_type}")
            for network, sets in predictives.items()
        ),
        plot_reliability(folder / "reliability.png", probs, images.labels),
        plot_risk_coverage(folder / "risk_coverage.png", known, images.labels),
        *(
            plot_sheet(folder / f"images_{network}.png", _sheet(sets, images), images.classes)
            for network, sets in predictives.items()
        ),
        *(
            plot_shift(folder / f"{name}.png", report[name], shift.label)
            for name, shift in SHIFTS.items()
            if name in report
        ),
    ]
    if "corruptions" in report:
        kinds = next(iter(report["corruptions"].values()))
        paths.append(plot_corruptions(folder / "corruptions.png", images.known[0], kinds, report["seed"]))
        paths += [
            plot_under_corruptions(folder / f"corruptions_{quantity}.png", report["corruptions"], quantity)
            for quantity in QUANTITIES
        ]
    return paths


def _sheet(sets: Mapping[str, Predictive], images: ImageSets) -> dict[str, tuple[Tensor, Predictive]]:
    """The known images that are classified correctly, those that are not, and the first unknown set."""
    predictive = sets[images.name]
    right = predictive.labels == images.labels
    known = {
        f"{images.name}, {name}": (images.known[mask], predictive.subset(mask))
        for name, mask in (("right", right), ("wrong", ~right))
        if mask.any()
    }
    return known | {name: (pixels, sets[name]) for name, pixels in list(images.unknown.items())[:1]}


@figure_style()
def plot_pruning(path: Path, curve: Sequence[Mapping[str, Any]], chosen: float, title: str) -> Path:
    """Accuracy and NLL against the fraction of weights that remain.

    Args:
        path: of the PNG file.
        curve: rows of `inference.pruning.pruning_curve`.
        chosen: the fraction that was pruned in the end.
        title: of the figure.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    rows = [row for row in curve if row["fraction"] is not None]
    for ax, name, label, color in zip(
        figure.subplots(1, 2), ("accuracy", "nll"), ("accuracy", "NLL (nats per example)"), (BLUE, ORANGE), strict=True
    ):
        ax.plot([100 * (1 - row["sparsity"]) for row in rows], [row[name] for row in rows], "o-", color=color, ms=4)
        ax.axvline(100 * (1 - chosen), color="0.6", linestyle=":")
        ax.annotate(f"chosen: {1 - chosen:.0%} left", (100 * (1 - chosen), 0.5), xycoords=("data", "axes fraction"),
                    rotation=90, ha="right", va="center", color="0.4")  # fmt: skip
        ax.set(xscale="log", xlabel="weights left (%)", ylabel=label)
        ax.invert_xaxis()
        ax.xaxis.set_major_formatter("{x:g}")
    figure.suptitle(title)
    return save_figure(figure, path)


@figure_style()
def plot_intervals(path: Path, predictive: RegressionPredictive, targets: Tensor, names: Sequence[str]) -> Path:
    """Predictions with their 90 % intervals against the true values, and the coverage of intervals against their level.

    Args:
        path: of the PNG file.
        predictive: of n images.
        targets: [n, targets], the true values.
        names: of the targets, of which the first four are shown.
    """
    count = min(4, len(names))
    figure = Figure(figsize=(8, 3.6 * count), layout="constrained")
    rows = figure.subplots(count, 2, squeeze=False)
    low, high = predictive.interval(0.9)
    levels = [level / 20 for level in range(1, 20)]
    for index, (left, right) in enumerate(rows):
        true, mean = targets[:, index].numpy(), predictive.mean[:, index].numpy()
        reach = np.stack([mean - low[:, index].numpy(), high[:, index].numpy() - mean])
        left.errorbar(true, mean, reach, fmt="o", markersize=3, linewidth=0.8, color=BLUE, ecolor="0.7")
        ends = [min(true.min(), mean.min()), max(true.max(), mean.max())]
        left.plot(ends, ends, color="grey", linewidth=1, linestyle=":")
        left.set(xlabel=f"{names[index]}, true", ylabel="predicted, 90 % interval")
        coverage = [predictive.coverage(targets, level)[index].item() for level in levels]
        right.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
        right.plot(levels, coverage, "o-", color=ORANGE, markersize=4)
        right.set(xlabel="level of the interval", ylabel="true values inside", xlim=(0, 1), ylim=(-0.02, 1.02))
    return save_figure(figure, path)


@figure_style()
def plot_labels(path: Path, predictive: Predictive, targets: Tensor, names: Sequence[str]) -> Path:
    """For each label, how often it applies against the probability that it does; of many labels, the first twelve.

    Args:
        path: of the PNG file.
        predictive: of n images, of the Bernoulli likelihood.
        targets: [n, labels], 0 or 1.
        names: of the labels.
    """
    count = min(12, len(names))
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3 * columns + 0.4, 3 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, ax in enumerate(axes.flat):
        if index >= count:
            ax.axis("off")
            continue
        probs, applies = predictive.probs[:, index].double(), targets[:, index].double()
        bins = (probs * 10).long().clamp_max(9)
        sizes = bins.bincount(minlength=10)
        means = [bins.bincount(values, 10) / sizes.clamp_min(1) for values in (probs, applies)]
        filled = sizes > 0
        ax.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
        ax.plot(means[0][filled].numpy(), means[1][filled].numpy(), "-", color=BLUE, linewidth=1)
        areas = 10 + 90 * (sizes[filled] / sizes.max()).numpy()
        ax.scatter(means[0][filled].numpy(), means[1][filled].numpy(), areas, color=BLUE)
        ax.set(title=names[index], xlabel="probability", ylabel="frequency", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    return save_figure(figure, path)


def plot_task(folder: Path, task: str, predictives: Mapping[str, Mapping[str, Any]], images: ImageSets) -> list[Path]:
    """The picture of each network for a task: intervals, labels or maps.

    Args:
        folder: where the pictures go.
        task: regression, multilabel or segmentation.
        predictives: of `inference.evaluate_task`.
        images: known and unknown, as for `inference.evaluate_task`.
    """
    paths = []
    for network, sets in predictives.items():
        if task == "segmentation":
            pixels = {images.name: images.known, **images.unknown}
            maps = {name: (pixels[name], predictive) for name, predictive in sets.items()}
            path = folder / f"maps_{network}.png"
            paths.append(plot_maps(path, maps, images.classes, {images.name: images.labels}, count=3))
        else:
            plot, name = (plot_intervals, "intervals") if task == "regression" else (plot_labels, "labels")
            paths.append(plot(folder / f"{name}_{network}.png", sets[images.name], images.labels, images.classes))
    return paths


@figure_style()
def plot_maps(
    path: Path,
    sets: Mapping[str, tuple[Tensor, Predictive]],
    classes: Sequence[str],
    masks: Mapping[str, Tensor] | None = None,
    count: int = 4,
) -> Path:
    """The first images of each set beside their masks, the predicted classes, and maps of the uncertainties.

    Args:
        path: of the PNG file.
        sets: by name, uint8 images [n, channels, height, width] and the predictive of their maps.
        classes: the names of the classes, by label.
        masks: by the name of the set, the true classes [n, height, width], where they are known.
        count: how many images of each set.
    """
    masks = masks or {}
    shown = [(name, index) for name, (images, _) in sets.items() for index in range(min(count, len(images)))]
    scores = {name: SCORES[name] for name in ("total entropy", "mutual information", "epistemic (normalized)")}
    columns = ("image", "true classes", "predicted", *scores)
    figure = Figure(figsize=(1.9 * len(columns) + 1, 1.85 * len(shown) + 0.9), layout="constrained")
    axes = figure.subplots(len(shown), len(columns), squeeze=False)
    colors = ListedColormap(["0.92", *(COLORS[index % len(COLORS)] for index in range(len(classes) - 1))])
    for row, (name, index) in zip(axes, shown, strict=True):
        images, predictive = sets[name]
        row[0].imshow(images[index].permute(1, 2, 0).squeeze(-1).numpy(), cmap="grey", vmin=0, vmax=255)
        row[0].set_ylabel(name, fontsize=9)
        for ax, labels in zip(row[1:3], (masks.get(name), predictive.labels), strict=True):
            if labels is None:
                ax.axis("off")
            else:
                ax.imshow(labels[index].numpy(), cmap=colors, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="none")
    for column, (label, score) in enumerate(scores.items(), start=3):
        values = [score(sets[name][1])[index].numpy() for name, index in shown]
        highest = max(float(value.max()) for value in values) or 1.0
        for ax, value in zip(axes[:, column], values, strict=True):
            mappable = ax.imshow(value, cmap="magma", vmin=0, vmax=highest)
        unit = UNITS.get(label, "variance")
        figure.colorbar(mappable, ax=axes[:, column], location="bottom", shrink=0.9, label=unit, aspect=12)
    for ax, title in zip(axes[0], columns, strict=True):
        ax.set_title(title, fontsize=10)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    handles = [Patch(color=colors(index), label=name) for index, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(classes), fontsize=8)
    return save_figure(figure, path)
