"""Quality against price: NLL, ECE, AUROC and corrupted NLL of the short runs, against what they cost.

`python -m experiments run --only short_` trains the networks. The price of a prediction is in passes of the twin, that
of training in trainings of one twin, both timed in turn within this process. Networks of three seeds give means.
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
from torch import Tensor

from benchmarks.measure import ratios_to_baseline, table, time_interleaved
from experiments.plan import BLOCKS, METHODS, Block, Experiment
from experiments.running import ExperimentFiles, load_classifiers, unknown_images
from images import load_data, normalize
from inference import Classifier, dropout_predictive, ensemble_predictive, novelties, shift_summary, under_corruptions
from likelihoods import Predictive, scores
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
LETTERS = 2000
Predict = Callable[[Sequence[Classifier], Tensor], Predictive]


@dataclass(frozen=True)
class Point:
    """One way to predict with networks of the plan.

    Attributes:
        label: its name in the picture.
        method: the method of the plan that trained them.
        predict: from classifiers and uint8 images to the predictive.
        members: the number of networks, with seeds 0, 1, …
        color: of its mark.
        marker: of matplotlib.
        most_seeds: the figures of a single network are means over so many seeds at most.
    """

    label: str
    method: str
    predict: Predict
    members: int = 1
    color: str = BLUE
    marker: str = "o"
    most_seeds: int = 3


def draws(classifiers: Sequence[Classifier], images: Tensor, count: int = 25) -> Predictive:
    """By draws from every network's distribution."""
    return ensemble_predictive(classifiers, images, count)


def moments(classifiers: Sequence[Classifier], images: Tensor) -> Predictive:
    """By moments, one pass per network."""
    return ensemble_predictive(classifiers, images, method="moments")


def dropout(classifiers: Sequence[Classifier], images: Tensor, count: int = 25) -> Predictive:
    """By passes with dropout."""
    return dropout_predictive(classifiers[0], images, count)


POINTS = (
    Point("twin", "short_twin", draws, 1, ORANGE, "o"),
    Point("2 twins", "short_twin", draws, 2, ORANGE, "s"),
    Point("3 twins", "short_twin", draws, 3, ORANGE, "D"),
    Point("MC dropout, 5", "short_dropout", partial(dropout, count=5), 1, PINK, "o"),
    Point("MC dropout, 25", "short_dropout", dropout, 1, PINK, "s"),
    Point("SWAG, 25", "short_swag", draws, 1, PINK, "^"),
    Point("Laplace, last layer", "short_twin", draws, 1, PINK, "v"),
    Point("variational last layer", "short_last_layer", draws, 1, GREEN, "v"),
    Point("rank-1, 3", "short_rank1", partial(draws, count=3), 1, GREEN, "o"),
    Point("rank-1, 25", "short_rank1", draws, 1, GREEN, "p"),
    Point("rank-1 of 4, 4", "short_rank1_4", partial(draws, count=4), 1, GREEN, "s"),
    Point("BatchEnsemble of 4", "short_batch_ensemble", partial(draws, count=4), 1, GREEN, "D"),
    Point("mean field, 1", "short_mean_field", partial(draws, count=1), 1, BLUE, "1"),
    Point("mean field, 5", "short_mean_field", partial(draws, count=5), 1, BLUE, "2"),
    Point("mean field, 25", "short_mean_field", draws, 1, BLUE, "3"),
    Point("mean field, 100", "short_mean_field", partial(draws, count=100), 1, BLUE, "4", most_seeds=1),
    Point("mean field, moments", "short_mean_field", moments, 1, BLUE, "o"),
    Point("patch prior of 30, moments", "short_patch_30", moments, 1, BLUE, "P"),
    Point("patch prior of 100, moments", "short_patch_100", moments, 1, BLUE, "X"),
    Point("3 posteriors, moments", "short_mean_field", moments, 3, BLUE, "D"),
)
METRICS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "auroc": "AUROC of letters",
    "corrupted_nll": "corrupted NLL",
    "corrupted_ece": "corrupted ECE",
}


def networks(point: Point, block: Block, places: ExperimentFiles) -> Iterator[list[Experiment]]:
    """The experiments whose networks predict together; for a single network, one after the other of all its seeds."""
    name = "short_laplace" if point.label.startswith("Laplace") else point.method
    seeds = range(block.seeds.get(point.method, 0))
    trained = [seed for seed in seeds if places.result(Experiment(block, point.method, seed)).exists()]
    if point.members > 1:
        if len(trained) >= point.members:
            yield [Experiment(block, name, seed) for seed in trained[: point.members]]
    else:
        yield from ([Experiment(block, name, seed)] for seed in trained[: point.most_seeds])


def measure(block: Block, places: ExperimentFiles, corrupted: int, rounds: int) -> dict[str, Any]:
    """The figures of every point whose networks have been trained.

    Args:
        block: data set and network.
        places: where the files are.
        corrupted: how many test images, drawn at random, undergo every corruption.
        rounds: of timing.
    """
    dataset = places.dataset(Experiment(block, "short_twin", 0))
    data = load_data(dataset, str(places.data_dir), 0.1, 0)
    generator = torch.Generator().manual_seed(0)
    letters = unknown_images(data, places.not_mnist)["notMNIST"]
    letters = letters[torch.randperm(len(letters), generator=generator)[:LETTERS]]
    known, labels = next(data.test.batches(len(data.test)))
    order = torch.randperm(len(known), generator=generator)[:corrupted]
    few, few_labels = known[order], labels[order]
    batch = known[:BATCH]
    rows: dict[str, dict[str, float]] = {}
    actions: dict[str, Callable[[], object]] = {}
    for point in POINTS:
        figures = []
        for experiments in networks(point, block, places):
            classifiers = [each for experiment in experiments for each in load_classifiers(experiment, places, data)]
            predict = partial(point.predict, classifiers)
            predictive = predict(known)
            shifted = shift_summary(under_corruptions(predict, few, few_labels), len(few))["mean"]
            figures.append(
                {name: value for name, value in scores(predictive, labels).items() if name in METRICS}
                | {
                    "auroc": novelties(predictive, predict(letters), ["total entropy"])["total entropy"]["auroc"],
                    "corrupted_nll": shifted["nll"],
                    "corrupted_ece": shifted["ece"],
                }
            )
            actions.setdefault(point.label, partial(predict, batch))
        if figures:
            rows[point.label] = {name: statistics.fmean(row[name] for row in figures) for name in METRICS}
            rows[point.label]["networks"] = len(figures)
            print(point.label, rows[point.label], flush=True)
    ratios = ratios_to_baseline(time_interleaved(actions, rounds), "twin")
    methods = dict.fromkeys(point.method for point in POINTS if point.label in rows)
    trainings = training_prices([Experiment(block, method, 0) for method in methods], places, rounds)
    for point in POINTS:
        if point.label in rows:
            rows[point.label]["prediction"] = ratios[point.label]["ratio"]
            rows[point.label]["training"] = point.members * trainings[point.method]
    return {"corrupted_images": corrupted, "epochs": METHODS["short_twin"].settings["n_epochs"], "points": rows}


def training_prices(experiments: Sequence[Experiment], places: ExperimentFiles, rounds: int) -> dict[str, float]:
    """A step of every method as a ratio to the twin's, which is one of them."""
    with TemporaryDirectory() as folder:
        actions = {each.method_name: _step(each, places, folder) for each in experiments}
        times = time_interleaved(actions, rounds)
    return {name: row["ratio"] for name, row in ratios_to_baseline(times, "short_twin").items()}


def _step(experiment: Experiment, places: ExperimentFiles, folder: str) -> Callable[[], object]:
    settings = replace(places.settings(experiment), checkpoint_dir=f"{folder}/{experiment.name}")
    state, setup = start(settings)
    state.net.train()
    images, labels = next(setup.data.train.batches(settings.batch_size))
    forward = wrap_for_training(state.net, settings, setup.world)
    inputs = normalize(images, setup.data.mean, setup.data.std)
    return lambda: loop.step(state, setup, forward, inputs, labels)


def render(record: Mapping[str, Any]) -> str:
    """The record as a Markdown table."""
    header = ["network", "prediction", "passes", "trainings", *METRICS.values()]
    rows = [
        [
            name, label, f"{row['prediction']:.1f}", f"{row['training']:.1f}", f"{100 * row['accuracy']:.2f} %",
            *(f"{row[metric]:.4f}" for metric in list(METRICS)[1:]),
        ]
        for name, block in record.items()
        for label, row in block["points"].items()
    ]  # fmt: skip
    return table(header, rows)


@figure_style()
def plot(name: str, block: Mapping[str, Any], path: Path) -> Path:
    """Four measures against the two prices, on log axes."""
    figure = Figure(figsize=(14, 7), layout="constrained")
    grid = figure.subplots(2, 4, sharex="row", sharey="col")
    marks = {point.label: point for point in POINTS}
    for axes, price in zip(grid, ("prediction", "training"), strict=True):
        for ax, metric in zip(axes, ("nll", "ece", "auroc", "corrupted_nll"), strict=True):
            for label, row in block["points"].items():
                point = marks[label]
                ax.plot(row[price], row[metric], point.marker, color=point.color, markersize=8, label=label)
            ax.set(xscale="log", title=METRICS[metric])
            ax.set_xlabel("passes of the twin" if price == "prediction" else "trainings of a twin")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    figure.suptitle(f"{name}: quality against the price of a prediction (above) and of training (below)")
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
    ExperimentFiles.add_flags(parser)
    add("--images", type=argument(whole(1)), default=500, help="of the test split, for corruptions (%(default)s)")
    add("--rounds", type=argument(whole(2)), default=7, help="of timing (%(default)s)")
    with report_user_errors():
        args = parser.parse_args()
        tune_cpu()
        places = ExperimentFiles.from_arguments(args)
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        for block in BLOCKS:
            name = f"{block.dataset}-{block.net_type}"
            if "short_twin" in block.seeds and args.only in name:
                record[name] = measure(block, places, args.images, args.rounds)
                write_json(RECORD, record)
                print(plot(name, record[name], FIGURES / f"frontier_{name.replace('-', '_')}.png"))
        print(render(record))


if __name__ == "__main__":
    main()
