"""Quality against price: how good the networks of the plan are, on known, unknown and corrupted images, and their cost.

Five series: "short", runs of 15 epochs of many methods (`python -m experiments run --only short_`); "searched",
complete runs by the settings that a search found (`run --only searched`); "default", complete runs by the settings of
the first results; "configured", runs as the configurations have them (`run --only configured`); and "wide", complete
runs of wider networks by the settings that searches found for LeNet (`run --only of_lenet`) and for themselves.
Points whose networks are no longer at hand keep the figures that they have in the record. The price of a prediction is
in passes of the twin, that of training in trainings of one twin, both timed in turn within this process. Networks of
several seeds give means and standard deviations, and are compared with their rival of the same price on the same
images.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from benchmarks.measure import ratios_to_baseline, table, time_interleaved
from experiments.plan import BLOCKS, METHODS, Block, Experiment
from experiments.running import ExperimentFiles, load_classifiers
from images import load_data, load_unknown, normalize
from inference import (
    Classifier,
    dropout_predictive,
    ensemble_predictive,
    fit_temperature,
    known_scores,
    novelties,
    shift_summary,
    under_corruptions,
)
from likelihoods import Predictive, ece, image_losses, nll, paired_gains
from support import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    OneLineParser,
    argument,
    figure_style,
    report_user_errors,
    save_figure,
    tune_cpu,
    whole,
    write_json,
)
from training import loop, start, wrap_for_training

ROOT = Path(__file__).parent
RECORD = ROOT / "frontier.json"
FIGURES = ROOT.parent / "docs" / "images"
BATCH = 256
UNKNOWN = 2000  # images of each set at most
Predict = Callable[[Sequence[Classifier], Tensor], Predictive]


@dataclass(frozen=True)
class Point:
    """One way to predict with networks of the plan.

    Attributes:
        label: its name in tables and pictures.
        method: of the plan, whose networks they are.
        predict: from classifiers and uint8 images to the predictive.
        members: the number of networks, with seeds 0, 1, …
        color: of its mark.
        marker: of matplotlib.
        most_seeds: the figures of a single network are means over so many seeds at most.
        rival: the label of the point with which it is compared, of the same price of training.
    """

    label: str
    method: str
    predict: Predict
    members: int = 1
    color: str = BLUE
    marker: str = "o"
    most_seeds: int = 3
    rival: str = ""

    @property
    def trained(self) -> str:
        """The method of the plan that trains the networks."""
        return METHODS[self.method].networks_of or self.method


def draws(classifiers: Sequence[Classifier], images: Tensor, count: int = 25) -> Predictive:
    """By draws from every network's distribution."""
    return ensemble_predictive(classifiers, images, count)


def moments(classifiers: Sequence[Classifier], images: Tensor) -> Predictive:
    """By moments, one pass per network."""
    return ensemble_predictive(classifiers, images, method="moments")


def dropout(classifiers: Sequence[Classifier], images: Tensor, count: int = 25) -> Predictive:
    """By passes with dropout."""
    return dropout_predictive(classifiers[0], images, count)


SHORT = (
    Point("twin", "short_twin", draws, 1, ORANGE, "o"),
    Point("2 twins", "short_twin", draws, 2, ORANGE, "s"),
    Point("3 twins", "short_twin", draws, 3, ORANGE, "D"),
    Point("5 twins", "short_twin", draws, 5, ORANGE, "P"),
    Point("MC dropout, 5", "short_dropout", partial(dropout, count=5), 1, PINK, "o", rival="twin"),
    Point("MC dropout, 25", "short_dropout", dropout, 1, PINK, "s", rival="twin"),
    Point("SWAG, 25", "short_swag", draws, 1, PINK, "^", rival="twin"),
    Point("Laplace, last layer", "short_laplace", draws, 1, PINK, "v", rival="twin"),
    Point("Laplace, 100", "short_laplace", partial(draws, count=100), 1, PINK, "<", rival="twin"),
    Point("variational last layer", "short_last_layer", draws, 1, GREEN, "v", rival="twin"),
    Point("last layer by its bound", "short_bounded", draws, 1, GREEN, "^", rival="twin"),
    Point("last layer of low rank", "short_low_rank", draws, 1, GREEN, "<", rival="twin"),
    Point("rank-1, 3", "short_rank1", partial(draws, count=3), 1, GREEN, "o", rival="twin"),
    Point("rank-1, 25", "short_rank1", draws, 1, GREEN, "p", rival="twin"),
    Point("rank-1, moments", "short_rank1", moments, 1, GREEN, "P", rival="twin"),
    Point("rank-1 of 4, 4", "short_rank1_4", partial(draws, count=4), 1, GREEN, "s", rival="twin"),
    Point("BatchEnsemble of 4", "short_batch_ensemble", partial(draws, count=4), 1, GREEN, "D", rival="twin"),
    Point("mean field, 1", "short_mean_field", partial(draws, count=1), 1, BLUE, "1", rival="twin"),
    Point("mean field, 5", "short_mean_field", partial(draws, count=5), 1, BLUE, "2", rival="twin"),
    Point("mean field, 25", "short_mean_field", draws, 1, BLUE, "3", rival="twin"),
    Point("mean field, 100", "short_mean_field", partial(draws, count=100), 1, BLUE, "4", most_seeds=1, rival="twin"),
    Point("mean field, moments", "short_mean_field", moments, 1, BLUE, "o", rival="twin"),
    Point("k-tied, moments", "short_k_tied", moments, 1, BLUE, "<", rival="twin"),
    Point("radial, moments", "short_radial", moments, 1, BLUE, ">", rival="twin"),
    Point("patch prior of 30, moments", "short_patch_30", moments, 1, BLUE, "P", rival="twin"),
    Point("patch prior of 100, moments", "short_patch_100", moments, 1, BLUE, "X", rival="twin"),
    Point("3 posteriors, moments", "short_mean_field", moments, 3, BLUE, "D", rival="3 twins"),
    Point("5 posteriors, moments", "short_mean_field", moments, 5, BLUE, "s", rival="5 twins"),
)


def _complete(twin: str, with_dropout: str, laplace: str, mean_field: str, patch_prior: str) -> tuple[Point, ...]:
    """The points of complete runs of these methods, each with its rival of the same price of training."""
    return (
        Point("twin", twin, draws, 1, ORANGE, "o"),
        Point("dropout", with_dropout, draws, 1, PINK, "o", rival="twin"),
        Point("MC dropout, 25", with_dropout, dropout, 1, PINK, "s", rival="twin"),
        Point("Laplace, last layer", laplace, draws, 1, PINK, "v", rival="twin"),
        Point("mean field, 25", mean_field, draws, 1, BLUE, "3", rival="twin"),
        Point("mean field, moments", mean_field, moments, 1, BLUE, "o", rival="twin"),
        Point("patch prior, moments", patch_prior, moments, 1, BLUE, "P", rival="twin"),
        Point("3 twins", twin, draws, 3, ORANGE, "D"),
        Point("3 posteriors, 25", mean_field, draws, 3, BLUE, "s", rival="3 twins"),
        Point("3 posteriors, moments", mean_field, moments, 3, BLUE, "D", rival="3 twins"),
    )


SEARCHED = _complete("twin_searched", "dropout_searched", "laplace_searched", "searched", "patch_searched")
CONFIGURED = _complete(
    "configured_twin", "configured_dropout", "configured_laplace", "configured", "configured_patch_1000"
)
DEFAULT = (
    *_complete("frequentist", "dropout", "laplace", "bbb_0.03", "patch_1e5"),
    # As the configurations have it: first filters from patches, and a prior by them.
    Point("twin by patches", "frequentist_by_patches", draws, 1, GREEN, "o", rival="twin"),
    Point("mean field by patches, moments", "by_patches_1e4", moments, 1, GREEN, "P", rival="twin by patches"),
    Point("3 twins by patches", "frequentist_by_patches", draws, 3, GREEN, "D", rival="3 twins"),
    Point("3 posteriors by patches, moments", "by_patches_1e4", moments, 3, GREEN, "X", rival="3 twins by patches"),
)
OWN_TWIN, OWN_TWINS = "own search: twin at the posterior's rate", "own search: 2 twins at its rate"
WIDE = (
    Point("twin", "twin_of_lenet", draws, 1, ORANGE, "o"),
    Point("2 twins", "twin_of_lenet", draws, 2, ORANGE, "s"),
    Point("dropout", "dropout_of_lenet", draws, 1, PINK, "x", rival="twin"),
    Point("MC dropout, 5", "dropout_of_lenet", partial(dropout, count=5), 1, PINK, "o", rival="twin"),
    Point("MC dropout, 25", "dropout_of_lenet", dropout, 1, PINK, "s", rival="twin"),
    Point("SWAG, 25", "swag_of_lenet", draws, 1, PINK, "^", rival="twin"),
    Point("Laplace, last layer", "laplace_of_lenet", draws, 1, PINK, "v", rival="twin"),
    Point("Bayesian last layer, 25", "last_layer_of_lenet", draws, 1, GREEN, "v", rival="twin"),
    Point("rank-1, 3", "narrow_rank1_of_lenet", partial(draws, count=3), 1, GREEN, "o", rival="twin"),
    Point("rank-1, moments", "narrow_rank1_of_lenet", moments, 1, GREEN, "P", rival="twin"),
    Point("rank-1 of 4, 4", "rank1_4_of_lenet", partial(draws, count=4), 1, GREEN, "s", rival="twin"),
    Point("BatchEnsemble of 4", "batch_ensemble_of_lenet", partial(draws, count=4), 1, GREEN, "D", rival="twin"),
    Point("mean field, 1", "narrow_start_of_lenet", partial(draws, count=1), 1, BLUE, "1", 1, "twin"),
    Point("mean field, 5", "narrow_start_of_lenet", partial(draws, count=5), 1, BLUE, "2", 1, "twin"),
    Point("mean field, 25", "narrow_start_of_lenet", draws, 1, BLUE, "3", 1, "twin"),
    Point("mean field, 100", "narrow_start_of_lenet", partial(draws, count=100), 1, BLUE, "4", 1, "twin"),
    Point("mean field, moments", "narrow_start_of_lenet", moments, 1, BLUE, "o", rival="twin"),
    Point("colder mean field, moments", "colder_narrow_start_of_lenet", moments, 1, BLUE, "P", rival="twin"),
    Point("2 posteriors, moments", "narrow_start_of_lenet", moments, 2, BLUE, "s", rival="2 twins"),
    Point("own search: twin", "twin_searched", draws, 1, ORANGE, "^", rival="twin"),
    Point(OWN_TWIN, "twin_at_rate", draws, 1, ORANGE, "v", rival="twin"),
    Point("own search: mean field, 25", "searched", draws, 1, BLUE, "x", rival=OWN_TWIN),
    Point("own search: mean field, moments", "searched", moments, 1, BLUE, "X", rival=OWN_TWIN),
    Point(OWN_TWINS, "twin_at_rate", draws, 2, ORANGE, "X", rival="2 twins"),
    Point("own search: 2 posteriors, moments", "searched", moments, 2, BLUE, "D", rival=OWN_TWINS),
)
COMPLETE = ("default", "searched")  # the series of the results page
SERIES = {"short": SHORT, "searched": SEARCHED, "default": DEFAULT, "configured": CONFIGURED, "wide": WIDE}
# Unknown sets besides letters.
SECOND = {"MNIST": "FashionMNIST", "FashionMNIST": "MNIST", "CIFAR10": "CIFAR100", "CIFAR100": "CIFAR10"}
Losses = dict[int, tuple[Tensor, Tensor]]  # by seed, `image_losses`
Metrics = Mapping[str, tuple[str, str]]  # by the name of a figure, its title and its format
CLEAN: Metrics = {
    "accuracy": ("accuracy", ".2%"),
    "nll": ("NLL", ".4f"),
    "brier": ("Brier", ".4f"),
    "ece": ("ECE", ".4f"),
    "calibrated_ece": ("ECE of a calibrated one", ".4f"),
    "scaled_nll": ("NLL, scaled", ".4f"),
    "scaled_ece": ("ECE, scaled", ".4f"),
    "risk_coverage_area": ("AURC", ".4f"),
    "coverage_at_1%_risk": ("coverage at 1 % risk", ".1%"),
}
ELSEWHERE: Metrics = {
    "auroc": ("AUROC of letters", ".4f"),
    "auroc_mi": ("of letters, MI", ".4f"),
    "second_auroc": ("AUROC of a second set", ".4f"),
    "second_auroc_mi": ("of a second set, MI", ".4f"),
    "corrupted_accuracy": ("corrupted accuracy", ".2%"),
    "corrupted_nll": ("corrupted NLL", ".4f"),
    "corrupted_ece": ("corrupted ECE", ".4f"),
    "honest": ("honest under", ".0%"),
}
METRICS: Metrics = {**CLEAN, **ELSEWHERE}
PLOTTED = ("nll", "ece", "auroc", "corrupted_nll")
PRICES = {"prediction": "passes of the twin", "training": "trainings of a twin"}


def networks(point: Point, block: Block, places: ExperimentFiles) -> Iterator[list[Experiment]]:
    """The experiments whose networks predict together; for a single network, one after the other of all its seeds."""
    seeds = range(block.seeds.get(point.trained, 0))
    trained = [seed for seed in seeds if places.result(Experiment(block, point.trained, seed)).exists()]
    if point.members > 1:
        if len(trained) >= point.members:
            yield [Experiment(block, point.method, seed) for seed in trained[: point.members]]
    else:
        yield from ([Experiment(block, point.method, seed)] for seed in trained[: point.most_seeds])


@dataclass(frozen=True, eq=False)
class TestImages:
    """What every network is asked.

    Attributes:
        known: uint8, the test images.
        labels: their classes.
        few: those of them that undergo every corruption.
        few_labels: their classes.
        unknown: by the name of a figure, images of other classes.
    """

    known: Tensor
    labels: Tensor
    few: Tensor
    few_labels: Tensor
    unknown: Mapping[str, Tensor]

    def figures(self, predict: Callable[[Tensor], Predictive]) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        """The figures of a way to predict, by their names in `METRICS`, and the losses per test image."""
        predictive = predict(self.known)
        shift = shift_summary(under_corruptions(predict, self.few, self.few_labels), len(self.few))
        figures = known_scores(predictive, self.labels) | after_scaling(predictive, self.labels)
        figures |= {f"corrupted_{name}": value for name, value in shift["mean"].items()}
        if shift["harmful"]:
            figures["honest"] = len(shift["honest"]) / len(shift["harmful"])
        for name, images in self.unknown.items():
            rows = novelties(predictive, predict(images), ("total entropy", "mutual information"))
            figures |= {name: rows["total entropy"]["auroc"], f"{name}_mi": rows["mutual information"]["auroc"]}
        return {name: figures[name] for name in METRICS if name in figures}, image_losses(predictive, self.labels)


def after_scaling(predictive: Predictive, labels: Tensor) -> dict[str, float]:
    """NLL and ECE after temperature scaling of log p̄, each half of the images by what fits the other.

    Ashukha et al. (2020), section 4: without it, a comparison of NLLs is one of temperatures.
    """
    halves = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tensor_split(2)
    probs = torch.empty_like(predictive.probs)
    for half, other in (halves, halves[::-1]):
        temperature = fit_temperature(predictive.log_probs[None, other], labels[other])
        probs[half] = (predictive.log_probs[half] / temperature).softmax(-1)
    return {"scaled_nll": nll(probs, labels), "scaled_ece": ece(probs, labels)}


def measure(
    block: Block, places: ExperimentFiles, corrupted: int, rounds: int, series: str = "short"
) -> dict[str, Any]:
    """The figures of every point whose networks have been trained.

    Args:
        block: data set and network.
        places: where the files are.
        corrupted: how many test images, drawn at random, undergo every corruption.
        rounds: of timing.
        series: a key of `SERIES`.
    """
    points = SERIES[series]
    data = load_data(places.dataset(Experiment(block, points[0].method, 0)), str(places.data_dir), 0.1, 0)
    known, labels = next(data.test.batches(len(data.test)))
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:corrupted]
    unknown = {"auroc": load_unknown(str(places.not_mnist), places.data_dir, data.channels, [known]).images}
    if block.dataset in SECOND:
        unknown["second_auroc"] = load_unknown(SECOND[block.dataset], places.data_dir, data.channels, [known]).images
    asked = TestImages(
        known, labels, known[order], labels[order], {name: images[:UNKNOWN] for name, images in unknown.items()}
    )
    rows: dict[str, dict[str, Any]] = {}
    losses: dict[str, Losses] = {}
    actions: dict[str, Callable[[], object]] = {}
    for point in points:
        figures = []
        for experiments in networks(point, block, places):
            classifiers = [each for experiment in experiments for each in load_classifiers(experiment, places, data)]
            predict = partial(point.predict, classifiers)
            scores, loss = asked.figures(predict)
            figures.append(scores)
            losses.setdefault(point.label, {})[experiments[0].seed] = loss
            actions.setdefault(point.label, partial(predict, known[:BATCH]))
        if figures:
            rows[point.label] = summary(figures)
            shared = [seed for seed in losses[point.label] if seed in losses.get(point.rival, {})]
            if shared:
                pairs = ([losses[label][seed] for seed in shared] for label in (point.label, point.rival))
                rows[point.label]["against"] = paired_gains(*pairs)
            print(point.label, rows[point.label], flush=True)
    ratios = ratios_to_baseline(time_interleaved(actions, rounds), points[0].label)
    methods = dict.fromkeys(point.trained for point in points if point.label in rows)
    trainings = training_prices([Experiment(block, method, 0) for method in methods], places, rounds)
    for point in points:
        if point.label in rows:
            rows[point.label]["prediction"] = ratios[point.label]["ratio"]
            rows[point.label]["training"] = point.members * trainings[point.trained]
    epochs = Experiment(block, points[0].method, 0).settings()["n_epochs"]
    return {"series": series, "corrupted_images": corrupted, "epochs": epochs, "points": rows}


def summary(figures: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The means over networks, how many there are, and their standard deviations if there are several."""
    means = {name: statistics.fmean(row[name] for row in figures) for name in figures[0]}
    if len(figures) == 1:
        return {**means, "networks": 1}
    deviations = {name: statistics.stdev(row[name] for row in figures) for name in figures[0]}
    return {**means, "networks": len(figures), "deviations": deviations}


def training_prices(experiments: Sequence[Experiment], places: ExperimentFiles, rounds: int) -> dict[str, float]:
    """A step of every method as a ratio to that of the first."""
    with TemporaryDirectory() as folder:
        actions = {each.method_name: _step(each, places, folder) for each in experiments}
        times = time_interleaved(actions, rounds)
    return {name: row["ratio"] for name, row in ratios_to_baseline(times, experiments[0].method_name).items()}


def _step(experiment: Experiment, places: ExperimentFiles, folder: str) -> Callable[[], object]:
    settings = replace(places.settings(experiment), checkpoint_dir=f"{folder}/{experiment.name}")
    state, setup = start(settings)
    state.net.train()
    images, labels = next(setup.data.train.batches(settings.batch_size))
    forward = wrap_for_training(state.net, settings, setup.world)
    inputs = normalize(images, setup.data.mean, setup.data.std)
    return lambda: loop.step(state, setup, forward, inputs, labels)


def render(record: Mapping[str, Any], *series: str) -> str:
    """The blocks of some series as Markdown tables: prices and known images, other images, and comparisons."""
    blocks = _of_series(record, series)
    lines = [(name, label, row) for name, block in blocks.items() for label, row in block["points"].items()]
    clean, elsewhere = (
        {name: metric for name, metric in metrics.items() if all(name in row for _, _, row in lines)}
        for metrics in (CLEAN, ELSEWHERE)
    )
    tables = [
        table(
            ["network", "prediction", "networks", "passes", "trainings", *(title for title, _ in clean.values())],
            [[name, label, *_prices(row), *_cells(row, clean)] for name, label, row in lines],
        ),
        table(
            ["network", "prediction", *(title for title, _ in elsewhere.values())],
            [[name, label, *_cells(row, elsewhere)] for name, label, row in lines],
        ),
    ]
    rivals = {point.label: point.rival for name in series for point in SERIES[name]}
    compared = [
        [name, f"{label} against {rivals[label]}", *_comparison(row["against"])]
        for name, label, row in lines
        if "against" in row
    ]
    header = ["network", "comparison", "accuracy gained", "McNemar's p, by seed", "NLL gained", "95 % interval"]
    return "\n".join([*tables, table(header, compared)] if compared else tables)


def _prices(row: Mapping[str, Any]) -> list[str]:
    return [str(row["networks"]), f"{row['prediction']:.1f}", f"{row['training']:.1f}"]


def _cells(row: Mapping[str, Any], metrics: Metrics) -> list[str]:
    """Mean, and ± the standard deviation of several networks."""
    deviations = row.get("deviations", {})
    return [
        f"{row[name]:{form}} ± {deviations[name]:{form}}" if name in deviations else f"{row[name]:{form}}"
        for name, (_, form) in metrics.items()
    ]


def _comparison(row: Mapping[str, Any]) -> list[str]:
    interval = f"{row['nll_gain_low']:.4f} to {row['nll_gain_high']:.4f}"
    p_values = ", ".join(f"{p:.2g}" for p in row["mcnemar_p"])
    return [f"{100 * row['accuracy_gain']:+.2f} points", p_values, f"{row['nll_gain']:.4f}", interval]


def _of_series(record: Mapping[str, Any], series: Sequence[str]) -> dict[str, Any]:
    """Their blocks, in the order of the plan."""
    order = [f"{block.dataset}-{block.net_type}" for block in BLOCKS]
    names = [name for name, block in record.items() if block["series"] in series]
    return {name: record[name] for name in sorted(names, key=lambda name: order.index(_network(name, record[name])))}


def _network(name: str, block: Mapping[str, Any]) -> str:
    return name.removesuffix(f"-{block['series']}")


def merged(earlier: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """A block of the record, with the points that an earlier one of the same images has of more networks."""
    conditions = ("series", "corrupted_images", "epochs")
    if any(earlier.get(name) != measured[name] for name in conditions):
        return dict(measured)
    points = {}
    for label in (point.label for point in SERIES[measured["series"]]):
        rows = [block["points"][label] for block in (measured, earlier) if label in block["points"]]
        if rows:
            points[label] = max(rows, key=lambda row: row["networks"])  # the new one, of as many
    return {**measured, "points": points}


def plot(name: str, block: Mapping[str, Any], path: Path) -> Path:
    """Four measures of a block against the two prices, on log axes."""
    title = f"{name}: quality against the price of a prediction (above) and of training (below)"
    return _plot([("", block, price) for price in PRICES], title, path)


def plot_overview(record: Mapping[str, Any], path: Path) -> Path:
    """Four measures of all complete runs against the price of a prediction."""
    blocks = _of_series(record, COMPLETE)
    labels = {name: _network(name, block).replace("-", ", ") for name, block in blocks.items()}
    return _plot([(labels[name], block, "prediction") for name, block in blocks.items()], "", path)


@figure_style()
def _plot(rows: Sequence[tuple[str, Mapping[str, Any], str]], title: str, path: Path) -> Path:
    """One row of panels per label, block and price; bars are ± the standard deviation over networks."""
    figure = Figure(figsize=(14, 1 + 3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(PLOTTED), squeeze=False, sharex="row")
    marks: dict[str, Any] = {}
    for axes, (label, block, price) in zip(grid, rows, strict=True):
        axes[0].set_ylabel(label)
        for ax, metric in zip(axes, PLOTTED, strict=True):
            for point in SERIES[block["series"]]:
                if point.label in block["points"]:
                    row = block["points"][point.label]
                    error = row.get("deviations", {}).get(metric)
                    marks[point.label] = ax.errorbar(
                        row[price], row[metric], error, fmt=point.marker, color=point.color, markersize=8
                    )
            ax.set(xscale="log", title=METRICS[metric][0], xlabel=PRICES[price])
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=5)
    figure.suptitle(title)
    return save_figure(figure, path)


def main() -> None:
    """Measure the blocks that the command line names; a user's mistake exits with code 2."""
    parser = OneLineParser(
        "python -m experiments.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--only", default="", help="data sets and networks whose names contain this, such as CIFAR10-lenet")
    add("--series", choices=SERIES, default="short", help="which runs (%(default)s)")
    ExperimentFiles.add_flags(parser)
    add("--images", type=argument(whole(1)), default=500, help="of the test split, for corruptions (%(default)s)")
    add("--rounds", type=argument(whole(2)), default=7, help="of timing (%(default)s)")
    with report_user_errors():
        args = parser.parse_args()
        tune_cpu()
        places = ExperimentFiles.from_arguments(args)
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        for block in BLOCKS:
            network = f"{block.dataset}-{block.net_type}"
            if SERIES[args.series][0].method in block.seeds and args.only in network:
                name = network if args.series == "short" else f"{network}-{args.series}"
                measured = measure(block, places, args.images, args.rounds, args.series)
                record[name] = merged(record.get(name, {}), measured)
                write_json(RECORD, record)
                print(plot(name, record[name], FIGURES / f"frontier_{name.replace('-', '_')}.png"))
        if args.series in COMPLETE:
            print(plot_overview(record, FIGURES / "overview.png"))
        print(render(record, args.series))


if __name__ == "__main__":
    main()
