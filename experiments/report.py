"""Tables and figures of the results."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from benchmarks.measure import table as markdown
from experiments import frontier, moments, robustness
from experiments.ablations import AS_PLANNED
from experiments.plan import AT_ONE, BLOCKS, METHODS, OWN_TABLES, TEMPERATURES
from experiments.recipes import FOLDER, read_trials
from support import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    UserError,
    figure_style,
    number,
    one_of,
    save_figure,
    text,
    whole,
    write_text,
)

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "results.md", ROOT / "experiments" / "README.md")
TRIALS = ROOT / "experiments" / "trials.json"  # runs that chose the plan's settings, on validation splits
ABLATIONS = ROOT / "experiments" / "ablations.json"
FIGURES = ROOT / "docs" / "images"
TITLES = {"lenet": "LeNet", "alexnet": "AlexNet", "3conv3fc": "3Conv3FC", "resnet18": "ResNet-18"}
FIGURES_OF_A_RUN = ("training_seconds", "predicting_seconds", "parameters", "epochs", "valid_nll")
Result = dict[str, Any]
Pick = Callable[[Result], float]  # picks a quantity of a result
Column = tuple[str, Pick, str]  # title, quantity, format


@dataclass(frozen=True)
class Row:
    """The results of one method on one data set and network.

    Attributes:
        dataset: the data set's name.
        net_type: the network's name.
        method: a key of `METHODS`.
        results: the content of the results files, by seed.
    """

    dataset: str
    net_type: str
    method: str
    results: tuple[Result, ...]

    def values(self, pick: Pick) -> list[float]:
        """A quantity per seed."""
        return [pick(result) for result in self.results]

    def mean(self, pick: Pick) -> float:
        """A quantity's mean over the seeds."""
        return statistics.fmean(self.values(pick))


def read(folder: Path) -> list[Row]:
    """All results in `folder`, ordered by data set, network and method.

    Raises:
        UserError: `folder` holds no results, or a file that is not the results of an experiment.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = _read_result(path)
        groups.setdefault((result["dataset"], result["net_type"], result["method"]), []).append(result)
    if not groups:
        raise UserError(f"there are no results in {folder}: make them with `python -m experiments run`")
    nets, datasets = list(TITLES), list(dict.fromkeys(block.dataset for block in BLOCKS))
    rows = [Row(*key, tuple(sorted(group, key=lambda result: result["seed"]))) for key, group in groups.items()]
    order = list(METHODS)

    def place(row: Row) -> tuple[int, int, int]:
        known = datasets.index(row.dataset) if row.dataset in datasets else len(datasets)
        return known, nets.index(row.net_type), order.index(row.method)

    return sorted(rows, key=place)


def _read_result(path: Path) -> Result:
    """The content of a results file, of which everything that the tables and figures read is checked."""
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        text(result["dataset"])
        for name, known in (("net_type", TITLES), ("method", METHODS)):
            one_of(*known)(result[name])
        figures = [pick(result) for _, pick, _ in COLUMNS]
        for figure in (*figures, *(result[name] for name in FIGURES_OF_A_RUN)):
            number(0)(figure)
        whole(0)(result["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not the results of an experiment: delete it and run it again") from error
    return result


def _test(name: str) -> Pick:
    return lambda result: result["test"][name]


def _auroc(unknown: str, score: str = "total entropy") -> Pick:
    return lambda result: result["unknown"][unknown][score]["auroc"]


def _seconds(result: Result) -> float:
    return result["training_seconds"]


COLUMNS: tuple[Column, ...] = (
    ("accuracy %", lambda result: 100 * result["test"]["accuracy"], ".2f"),
    ("NLL", _test("nll"), ".4f"),
    ("Brier", _test("brier"), ".4f"),
    ("ECE", _test("ece"), ".4f"),
    ("AUROC notMNIST", _auroc("notMNIST"), ".4f"),
    ("AUROC notMNIST, MI", _auroc("notMNIST", "mutual information"), ".4f"),
    ("AUROC noise", _auroc("noise"), ".4f"),
)


def _validation(name: str) -> Pick:
    return lambda result: result["best_validations"][0][name]


AT_ONE_COLUMNS: tuple[Column, ...] = (
    *COLUMNS[:2],
    COLUMNS[3],
    ("training NLL", _validation("train_nll"), ".4f"),
    ("KL", _validation("train_kl"), ",.0f"),
    ("ELBO", _validation("valid_elbo"), ".3f"),
    *COLUMNS[4:6],
)


def table(rows: Sequence[Row]) -> str:
    """All rows as a Markdown table: means over the seeds, ± the standard deviation if there are several."""
    header = [
        "network",
        "method",
        "seeds",
        *(name for name, _, _ in COLUMNS),
        "parameters",
        "epochs",
        "training",
        "prediction",
    ]
    lines = []
    for row in rows:
        first = row.results[0]
        lines.append(
            [
                f"{TITLES[row.net_type]}, {row.dataset}",
                METHODS[row.method].title,
                str(len(row.results)),
                *(_cell(row.values(pick), form) for _, pick, form in COLUMNS),
                f"{first['parameters']:,}",
                str(first["epochs"]),
                f"{row.mean(_seconds):,.0f} s",
                f"{row.mean(lambda result: result['predicting_seconds']):.1f} s",
            ]
        )
    return markdown(header, lines)


def at_one_table(rows: Sequence[Row]) -> str:
    """The networks at β = 1 and their controls, as a Markdown table: KL in nats, ELBO in nats per example."""
    header = ["network", "training", *(name for name, _, _ in AT_ONE_COLUMNS)]
    lines = []
    for row in rows:
        if row.method in AT_ONE:
            bayesian = METHODS[row.method].bayesian
            cells = [
                _cell(row.values(pick), form) if bayesian or name not in ("KL", "ELBO") else ""
                for name, pick, form in AT_ONE_COLUMNS
            ]
            lines.append([f"{TITLES[row.net_type]}, {row.dataset}", METHODS[row.method].title, *cells])
    return markdown(header, lines) if lines else "None of these networks has been trained yet."


def _cell(values: Sequence[float], form: str) -> str:
    """Mean and, of several values, ± standard deviation."""
    mean = f"{statistics.fmean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else mean


def trials_table(trials: Sequence[Result]) -> str:
    """Runs that were validated and never tested, as a Markdown table."""
    header = ["network", "settings", "epochs", "train NLL", "validation NLL", "validation accuracy"]
    lines = []
    for trial in trials:
        settings = {name: value for name, value in trial["settings"].items() if name not in ("net_type", "n_epochs")}
        stopped_at = "" if trial["epochs_run"] == trial["settings"]["n_epochs"] else f"{trial['epochs_run']} of "
        lines.append(
            [
                f"{TITLES[trial['settings']['net_type']]}, {trial['dataset']}, {trial['family']}",
                ", ".join(f"{name} {value}" for name, value in settings.items()),
                f"{stopped_at}{trial['settings']['n_epochs']}",
                f"{trial['train_nll']:.4f}",
                f"{trial['valid_nll']:.4f}",
                f"{trial['valid_accuracy']:.2%}",
            ]
        )
    return markdown(header, lines)


def searches_table() -> str:
    """The trials of every search, from the best on, as a Markdown table."""
    lines = []
    for path in sorted(FOLDER.glob("*.json")):
        dataset, net_type, family = path.stem.rsplit("-", 2)
        trials = read_trials(path)
        for trial in sorted(trials, key=lambda trial: math.inf if trial["value"] is None else trial["value"]):
            settings = ", ".join(
                f"{name} {value:.2g}" if isinstance(value, float) else str(value)
                for name, value in trial["params"].items()
            )
            bests = ", ".join(f"{min(curve):.4f}" for curve in trial["valid_nll"])
            mean = "pruned" if trial["value"] is None else f"{trial['value']:.4f}"
            lines.append([f"{TITLES[net_type]}, {dataset}, {family}", settings, bests, mean])
    return markdown(["network", "settings", "validation NLL by seed", "mean"], lines)


def ablations_table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The effect of each change on validation, as a Markdown table; differences are between runs of the same seed."""
    header = ["change", "validation NLL", "difference from planned", "validation accuracy %"]
    planned = results[AS_PLANNED]["valid_nll"]
    lines = []
    for change, values in results.items():
        differences = [changed - base for base, changed in zip(planned, values["valid_nll"], strict=True)]
        lines.append(
            [
                change,
                _cell(values["valid_nll"], ".4f"),
                "" if change == AS_PLANNED else _cell(differences, "+.4f"),
                _cell([100 * accuracy for accuracy in values["valid_accuracy"]], ".2f"),
            ]
        )
    return markdown(header, lines)


def best_temperature(rows: Sequence[Row], dataset: str, net_type: str, estimator: str) -> Row | None:
    """The Gaussian network with the lowest validation NLL at its first seed; the test split is not used."""
    candidates = _temperatures(rows, dataset, net_type, estimator)
    return min(candidates, key=lambda row: row.results[0]["valid_nll"]) if candidates else None


def _temperatures(rows: Sequence[Row], dataset: str, net_type: str, estimator: str) -> list[Row]:
    """The rows of the Gaussian networks at every β that has results."""
    methods = [f"{estimator}_{beta:g}" for beta in TEMPERATURES]
    return [row for row in rows if (row.dataset, row.net_type) == (dataset, net_type) and row.method in methods]


def with_tables(page: str, rows: Sequence[Row]) -> str:
    """The page with its tables replaced, each between marks such as `<!-- results -->` and `<!-- /results -->`."""
    prices = json.loads(frontier.RECORD.read_text(encoding="utf-8"))
    tables = {
        "results": table([row for row in rows if row.method not in OWN_TABLES]),
        "at one": at_one_table(rows),
        "frontier": frontier.render(prices, "short"),
        "configured": frontier.render(prices, "configured"),
        "wide": frontier.render(prices, "wide"),
        "second edition": frontier.render(prices, *frontier.COMPLETE),
        "robustness": robustness.render(json.loads(robustness.RECORD.read_text(encoding="utf-8"))),
        "moments": moments.render(json.loads(moments.RECORD.read_text(encoding="utf-8"))),
        "searches": searches_table(),
        "ablations": ablations_table(json.loads(ABLATIONS.read_text(encoding="utf-8"))),
        "trials": trials_table(json.loads(TRIALS.read_text(encoding="utf-8"))),
    }
    for name, markup in tables.items():
        between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        page = re.sub(between, lambda _, markup=markup: f"\n{markup}\n", page, flags=re.DOTALL)  # type: ignore[misc]
    return page


def write(rows: Sequence[Row]) -> None:
    """Write the tables into the pages, and the figures into docs/images."""
    for page in PAGES:
        write_text(page, with_tables(page.read_text(encoding="utf-8"), rows))
    plotted = [row for row in rows if row.method not in OWN_TABLES]
    for path in (plot_methods(plotted), plot_pairs(plotted), plot_temperatures(plotted)):
        print(path)


ESTIMATORS = {"bbb": "o", "lrt": "s"}
COLORS = {"bbb": BLUE, "lrt": GREEN}


def _color(name: str) -> str:
    """Of a method's marks."""
    method = METHODS[name]
    if method.bayesian:
        return BLUE
    if "dropout" in name or method.laplace or method.collects:
        return PINK
    return GREEN if method.members > 1 else ORANGE


@figure_style()
def plot_methods(rows: Sequence[Row]) -> Path:
    """Accuracy, NLL and ECE of every method: one row of panels per data set and network, one point per seed."""
    blocks = list(dict.fromkeys((row.dataset, row.net_type) for row in rows))
    heights = [sum((row.dataset, row.net_type) == block for row in rows) for block in blocks]
    figure = Figure(figsize=(11, 1 + 0.26 * sum(heights) + 0.6 * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), 3, squeeze=False, height_ratios=heights, sharey="row")
    for axes, block in zip(grid, blocks, strict=True):
        block_rows = [row for row in rows if (row.dataset, row.net_type) == block][::-1]
        for ax, (name, pick, _) in zip(axes, (COLUMNS[0], COLUMNS[1], COLUMNS[3]), strict=True):
            for height, row in enumerate(block_rows):
                values = row.values(pick)
                color = _color(row.method)
                ax.plot(values, [height] * len(values), "o", color=color, alpha=0.5, markersize=5)
                ax.plot(row.mean(pick), height, "|", color=color, markersize=12, markeredgewidth=2)
            titles = [METHODS[row.method].title for row in block_rows]
            ax.set(xlabel=name, yticks=range(len(block_rows)), yticklabels=titles, ylim=(-0.6, len(block_rows) - 0.4))
            ax.xaxis.set_major_locator(MaxNLocator(4))
        axes[0].set_title(f"{TITLES[block[1]]}, {block[0]}", loc="left")
    return save_figure(figure, FIGURES / "results.png")


@figure_style()
def plot_pairs(rows: Sequence[Row]) -> Path:
    """Bayesian against frequentist, one color per data set and network; a point below the line is better."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    twins = [row for row in rows if row.method == "frequentist"]
    errors: Column = ("error %", lambda result: 100 - 100 * result["test"]["accuracy"], ".2f")
    grid = figure.subplots(1, 3)
    for ax, (name, pick, _) in zip(grid, (errors, COLUMNS[1], COLUMNS[3]), strict=True):
        ends = []
        for index, (twin, (estimator, marker)) in enumerate(product(twins, ESTIMATORS.items())):
            best = best_temperature(rows, twin.dataset, twin.net_type, estimator)
            if best is None:
                continue
            x, y = twin.mean(pick), best.mean(pick)
            label = f"{TITLES[twin.net_type]}, {twin.dataset}, {estimator}"
            ax.plot(x, y, marker, color=f"C{index // len(ESTIMATORS)}", label=label)
            ends += [x, y]
        if ends:
            ax.plot([min(ends), max(ends)], [min(ends), max(ends)], ":", color="grey")
        ax.set(xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter("{x:g}")
        ax.set(title=name, xlabel="frequentist", ylabel="Gaussian, β best on validation")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save_figure(figure, FIGURES / "bayesian_against_frequentist.png")


@figure_style()
def plot_temperatures(rows: Sequence[Row]) -> Path:
    """Accuracy, NLL and AUROC of the Gaussian networks against β, with the twin's as a horizontal line."""
    blocks = [
        block
        for block in dict.fromkeys((row.dataset, row.net_type) for row in rows)
        if any(len(_temperatures(rows, *block, estimator)) > 2 for estimator in ESTIMATORS)
    ]
    figure = Figure(figsize=(11, 3.2 * max(1, len(blocks))), layout="constrained")
    for axes, block in zip(figure.subplots(max(1, len(blocks)), 3, squeeze=False), blocks, strict=False):
        twin = next(row for row in rows if (row.dataset, row.net_type, row.method) == (*block, "frequentist"))
        for ax, (name, pick, _) in zip(axes, (COLUMNS[0], COLUMNS[1], COLUMNS[4]), strict=True):
            for estimator, marker in ESTIMATORS.items():
                color = COLORS[estimator]
                curve = _temperatures(rows, *block, estimator)
                points = [(float(row.method.split("_")[1]), value) for row in curve for value in row.values(pick)]
                ax.plot([x for x, _ in points], [y for _, y in points], marker, color=color, alpha=0.4)
                betas = [float(row.method.split("_")[1]) for row in curve]
                ax.plot(betas, [row.mean(pick) for row in curve], "-", color=color, label=estimator)
            ax.axhline(twin.mean(pick), color=ORANGE, linestyle="--", label="frequentist")
            ax.set(xscale="log", xlabel="β", ylabel=name)
        axes[0].set_title(f"{TITLES[block[1]]}, {block[0]}", loc="left")
        axes[0].legend()
    return save_figure(figure, FIGURES / "temperature.png")
