"""Tables and pictures of the results."""

from __future__ import annotations

import json
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
from experiments.ablations import AS_PLANNED
from experiments.plan import METHODS, TEMPERATURES
from support import BLUE, GREEN, ORANGE, PINK, UserError, figure_style, save_figure, write_text

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "experiments" / "README.md")
TRIALS = ROOT / "experiments" / "trials.json"  # on validation splits, before the plan was made
ABLATIONS = ROOT / "experiments" / "ablations.json"
PICTURES = ROOT / "docs" / "images"
TITLES = {"lenet": "LeNet", "alexnet": "AlexNet", "3conv3fc": "3Conv3FC"}
Result = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One method on one data set and network, over its seeds."""

    dataset: str
    net_type: str
    method: str
    results: tuple[Result, ...]

    def values(self, pick: Callable[[Result], float]) -> list[float]:
        return [pick(result) for result in self.results]

    def mean(self, pick: Callable[[Result], float]) -> float:
        return statistics.fmean(self.values(pick))


def read(folder: Path) -> list[Row]:
    """All results, by data set, network and method.

    Raises:
        UserError: there are none.
    """
    found: dict[tuple[str, str, str], list[Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault((result["dataset"], result["net_type"], result["method"]), []).append(result)
    if not found:
        raise UserError(f"there are no results in {folder}: `python -m experiments run` makes them")
    nets = list(TITLES)
    rows = [Row(*key, tuple(sorted(group, key=lambda result: result["seed"]))) for key, group in found.items()]
    order = list(METHODS)
    return sorted(rows, key=lambda row: (row.dataset != "MNIST", nets.index(row.net_type), order.index(row.method)))


Pick = Callable[[Result], float]


def _test(name: str) -> Pick:
    return lambda result: result["test"][name]


def _auroc(unknown: str, score: str = "total entropy") -> Pick:
    return lambda result: result["unknown"][unknown][score]["auroc"]


def _seconds(result: Result) -> float:
    return result["training_seconds"]


Column = tuple[str, Pick, str]  # title, of a result, format

COLUMNS: tuple[Column, ...] = (
    ("accuracy %", lambda result: 100 * result["test"]["accuracy"], ".2f"),
    ("NLL", _test("nll"), ".4f"),
    ("Brier", _test("brier"), ".4f"),
    ("ECE", _test("ece"), ".4f"),
    ("AUROC notMNIST", _auroc("notMNIST"), ".4f"),
    ("AUROC notMNIST, MI", _auroc("notMNIST", "mutual information"), ".4f"),
    ("AUROC noise", _auroc("noise"), ".4f"),
)


def table(rows: Sequence[Row]) -> str:
    """All rows in Markdown: means over the seeds, ± their standard deviation where there are several."""
    header = [
        "network",
        "method",
        "seeds",
        *(name for name, _, _ in COLUMNS),
        "parameters",
        "epochs",
        "train",
        "predict",
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


def _cell(values: Sequence[float], form: str) -> str:
    mean = f"{statistics.fmean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else mean


def trials_table(trials: Sequence[Result]) -> str:
    """Runs that were validated and never tested, in Markdown."""
    header = ["network", "settings", "epochs", "train NLL", "validation NLL", "validation accuracy"]
    lines = []
    for trial in trials:
        settings = {name: value for name, value in trial["settings"].items() if name not in ("net_type", "n_epochs")}
        stopped = "" if trial["epochs_run"] == trial["settings"]["n_epochs"] else f"{trial['epochs_run']} of "
        lines.append(
            [
                f"{TITLES[trial['settings']['net_type']]}, {trial['dataset']}, {trial['family']}",
                ", ".join(f"{name} {value}" for name, value in settings.items()),
                f"{stopped}{trial['settings']['n_epochs']}",
                f"{trial['train_nll']:.4f}",
                f"{trial['valid_nll']:.4f}",
                f"{trial['valid_accuracy']:.2%}",
            ]
        )
    return markdown(header, lines)


def ablations_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """What each change did to the validation split, in Markdown; differences are of the same seeds' runs."""
    header = ["changed", "validation NLL", "to as planned", "validation accuracy %"]
    planned = found[AS_PLANNED]["valid_nll"]
    lines = []
    for change, values in found.items():
        differences = [other - one for one, other in zip(planned, values["valid_nll"], strict=True)]
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
    """Of the Gaussian networks, that of the lowest validation NLL at its first seed; the test split has no say."""
    found = _temperatures(rows, dataset, net_type, estimator)
    return min(found, key=lambda row: row.results[0]["valid_nll"]) if found else None


def _temperatures(rows: Sequence[Row], dataset: str, net_type: str, estimator: str) -> list[Row]:
    wanted = [f"{estimator}_{beta:g}" for beta in TEMPERATURES]
    return [row for row in rows if (row.dataset, row.net_type) == (dataset, net_type) and row.method in wanted]


def with_tables(page: str, rows: Sequence[Row]) -> str:
    """The page with what stands between `<!-- results -->` and `<!-- /results -->`, and so of others, made anew."""
    tables = {
        "results": table(rows),
        "ablations": ablations_table(json.loads(ABLATIONS.read_text(encoding="utf-8"))),
        "trials": trials_table(json.loads(TRIALS.read_text(encoding="utf-8"))),
    }
    for name, text in tables.items():
        between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        page = re.sub(between, lambda _, text=text: f"\n{text}\n", page, flags=re.DOTALL)  # type: ignore[misc]
    return page


def write(rows: Sequence[Row]) -> None:
    """Tables into the pages, pictures beside the others."""
    for page in PAGES:
        write_text(page, with_tables(page.read_text(encoding="utf-8"), rows))
    for picture in (plot_methods(rows), plot_pairs(rows), plot_temperatures(rows)):
        print(picture)


ESTIMATORS = {"bbb": "o", "lrt": "s"}
COLORS = {"bbb": BLUE, "lrt": GREEN}
FAMILIES = {"frequentist": ORANGE, "dropout": PINK, "mc_dropout": PINK, "ensemble": GREEN}


@figure_style()
def plot_methods(rows: Sequence[Row]) -> Path:
    """Accuracy, NLL and ECE of every method, a row a data set and network, a point a seed."""
    blocks = list(dict.fromkeys((row.dataset, row.net_type) for row in rows))
    tallest = [sum((row.dataset, row.net_type) == block for row in rows) for block in blocks]
    figure = Figure(figsize=(11, 1 + 0.26 * sum(tallest) + 0.6 * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), 3, squeeze=False, height_ratios=tallest, sharey="row")
    for axes, block in zip(grid, blocks, strict=True):
        mine = [row for row in rows if (row.dataset, row.net_type) == block][::-1]
        for ax, (name, pick, _) in zip(axes, (COLUMNS[0], COLUMNS[1], COLUMNS[3]), strict=True):
            for height, row in enumerate(mine):
                values = row.values(pick)
                color = FAMILIES.get(row.method, BLUE)
                ax.plot(values, [height] * len(values), "o", color=color, alpha=0.5, markersize=5)
                ax.plot(row.mean(pick), height, "|", color=color, markersize=12, markeredgewidth=2)
            titles = [METHODS[row.method].title for row in mine]
            ax.set(xlabel=name, yticks=range(len(mine)), yticklabels=titles, ylim=(-0.6, len(mine) - 0.4))
            ax.xaxis.set_major_locator(MaxNLocator(4))
        axes[0].set_title(f"{TITLES[block[1]]}, {block[0]}", loc="left")
    return save_figure(figure, PICTURES / "results.png")


@figure_style()
def plot_pairs(rows: Sequence[Row]) -> Path:
    """Bayesian against frequentist, a color a data set and network: below the line is better."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    twins = [row for row in rows if row.method == "frequentist"]
    errors: Column = ("error %", lambda result: 100 - 100 * result["test"]["accuracy"], ".2f")
    grid = figure.subplots(1, 3)
    for ax, (name, pick, _) in zip(grid, (errors, COLUMNS[1], COLUMNS[3]), strict=True):
        ends = []
        for number, (twin, (estimator, marker)) in enumerate(product(twins, ESTIMATORS.items())):
            best = best_temperature(rows, twin.dataset, twin.net_type, estimator)
            if best is None:
                continue
            x, y = twin.mean(pick), best.mean(pick)
            label = f"{TITLES[twin.net_type]}, {twin.dataset}, {estimator}"
            ax.plot(x, y, marker, color=f"C{number // len(ESTIMATORS)}", label=label)
            ends += [x, y]
        if ends:
            ax.plot([min(ends), max(ends)], [min(ends), max(ends)], ":", color="grey")
        ax.set(xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter("{x:g}")
        ax.set(title=name, xlabel="frequentist", ylabel="Gaussian, β best on validation")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save_figure(figure, PICTURES / "bayesian_against_frequentist.png")


@figure_style()
def plot_temperatures(rows: Sequence[Row]) -> Path:
    """Accuracy, NLL and AUROC of the Gaussian networks against β, beside the twin's."""
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
    return save_figure(figure, PICTURES / "temperature.png")
