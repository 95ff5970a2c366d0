"""What helps under corruption, chosen on validation images, by kinds of corruption that no test uses.

For each method of the plan whose network has been trained: accuracy, NLL and ECE on validation images as they are, and
their means over the kinds of `images.FOR_CHOOSING` at all five severities; and under how many of the kinds that do harm
the entropy rises with the error. Bayesian networks predict by moments. The figures are added to a record.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import table
from experiments.frontier import draws, dropout, moments
from experiments.plan import BLOCKS, METHODS, Block, Experiment
from experiments.running import ExperimentFiles, load_classifiers
from images import FOR_CHOOSING, load_data
from inference import shift_summary, under_corruptions
from likelihoods import Predictive
from support import OneLineParser, UserError, argument, report_user_errors, tune_cpu, whole, write_json

RECORD = Path(__file__).parent / "robustness.json"
TITLES = {"accuracy": ("accuracy", ".2%"), "nll": ("NLL", ".4f"), "ece": ("ECE", ".4f")}


def candidates(block: Block, places: ExperimentFiles, names: Sequence[str]) -> list[Experiment]:
    """The experiments of seed 0 with these methods.

    Raises:
        UserError: one of them is not in the plan, or its network has not been trained.
    """
    found = []
    for name in names:
        if block.seeds.get(name, 0) == 0:
            raise UserError(
                f"the plan has no {block.dataset}-{block.net_type}-{name}: see `python -m experiments list`"
            )
        experiment = Experiment(block, name, 0)
        for source in experiment.sources:
            if not places.run(source).best.exists():
                raise UserError(f"{source.name} is not trained: run `python -m experiments run --only {source.name}`")
        found.append(experiment)
    return found


def figures(predict: Callable[[Tensor], Predictive], images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Scores of images as they are and under corruption, the kinds that do harm, and those under which it is honest."""
    corruptions = under_corruptions(predict, images, labels, FOR_CHOOSING)
    changed = [row for rows in corruptions.values() for row in rows[1:]]
    summary = shift_summary(corruptions, len(images))
    clean = next(iter(corruptions.values()))[0]  # at severity 0, the same for every kind
    return {
        "clean": {name: clean[name] for name in TITLES},
        "corrupted": {name: statistics.fmean(row[name] for row in changed) for name in TITLES},
        "harmful": summary["harmful"],
        "honest": summary["honest"],
    }


def measure(experiments: Sequence[Experiment], places: ExperimentFiles, count: int) -> dict[str, Any]:
    """The figures of trained networks, by method, on the first `count` images of the validation split of seed 0."""
    rows = {}
    data = load_data(places.dataset(experiments[0]), str(places.data_dir), 0.1, 0)
    images, labels = next(data.valid.batches(count, torch.arange(min(count, len(data.valid)))))
    for experiment in experiments:
        method = experiment.method
        predict = dropout if method.dropout_at_work else moments if method.bayesian else draws
        classifiers = load_classifiers(experiment, places, data)
        rows[experiment.method_name] = {"images": len(images)} | figures(partial(predict, classifiers), images, labels)
        print(experiment.name, rows[experiment.method_name], flush=True)
    return rows


def render(record: Mapping[str, Mapping[str, Any]]) -> str:
    """The record as a Markdown table."""
    lines = [
        [
            name,
            METHODS[method].title,
            *(f"{row[state][key]:{form}}" for state in ("clean", "corrupted") for key, (_, form) in TITLES.items()),
            f"{len(row['honest'])} of {len(row['harmful'])}",
        ]
        for name, rows in record.items()
        for method, row in rows.items()
    ]
    columns = [f"{state}{title}" for state in ("", "corrupted ") for title, _ in TITLES.values()]
    return table(["network", "method", *columns, "honest under"], lines)


def main() -> None:
    """Measure the networks that the command line names; a user's mistake exits with code 2."""
    parser = OneLineParser(
        "python -m experiments.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("network", help="a data set and a network of the plan, such as CIFAR10-lenet")
    add("methods", nargs="+", help="methods of the plan, such as short_twin")
    ExperimentFiles.add_flags(parser)
    add("--images", type=argument(whole(1)), default=2000, help="of the validation split (%(default)s)")
    with report_user_errors():
        args = parser.parse_args()
        tune_cpu()
        places = ExperimentFiles.from_arguments(args)
        blocks = [block for block in BLOCKS if f"{block.dataset}-{block.net_type}" == args.network]
        if not blocks:
            raise UserError(f"the plan has no {args.network}: see `python -m experiments list`")
        rows = measure(candidates(blocks[0], places, args.methods), places, args.images)
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        record[args.network] = record.get(args.network, {}) | rows
        write_json(RECORD, record)
        print(render(record))


if __name__ == "__main__":
    main()
