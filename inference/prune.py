"""Prune a trained Bayesian network: how accuracy and NLL change as the weights with the smallest |μ|/σ are set to 0.

The curve is computed on the validation split, and the fraction is chosen by it; the test split is used once, for the
network before and after pruning. The data set and its split are those that the checkpoint was trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

from inference.classifier import Classifier, load_finite_network
from inference.evaluation import load_training_data, require_classification, split_scores
from inference.plots import plot_pruning
from inference.pruning import default_fractions, largest_fraction, pruned, pruning_curve, sparsity
from layers import weight_posteriors
from models import save_network
from support import OneLineParser, UserError, argument, number, report_user_errors, tune_cpu, whole, write_json


def parse(flags: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = OneLineParser("python -m inference.prune", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--weights_path", type=Path, required=True, help="a checkpoint of main_bayesian.py")
    add("--fraction", type=float, help="the fraction of the weights to prune (default: chosen on the validation split)")
    add(
        "--max_loss",
        type=argument(number(0, 1)),
        default=0.003,
        help="validation accuracy that may be lost when the fraction is chosen (0.003: 0.3 points)",
    )
    add("--by_layer", action="store_true", help="prune the same fraction of every tensor, not of all together")
    add("--num_samples", type=argument(whole(1)), default=25, help="posterior samples per prediction (%(default)s)")
    add("--net_type", help="package.module:factory, if the network is your own")
    add("--data_dir", default="data", help="where downloaded data lies (%(default)s)")
    add("--save_path", type=Path, help="the pruned checkpoint (<weights_path without .pt>.pruned.pt)")
    add("--overwrite", action="store_true", help="allow --save_path to be the file of --weights_path")
    args = parser.parse_args(flags)
    if args.fraction is not None and not 0 <= args.fraction <= 1:
        parser.error(f"--fraction must be from 0 to 1, got {args.fraction}")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compute the curve, write the pruned checkpoint, and test; returns the content of `<pruned checkpoint>.json`."""
    tune_cpu()
    path: Path = args.weights_path
    save_path: Path = args.save_path or path.with_suffix(".pruned.pt")
    if save_path.suffix in (".json", ".png"):
        raise UserError(f"cannot save a checkpoint as {save_path}, where its report goes: give a name that ends in .pt")
    if save_path.resolve() == path.resolve() and not args.overwrite:
        raise UserError(f"{save_path} is the file to prune: give another --save_path, or --overwrite to replace it")
    saved = load_finite_network(path, net_type=args.net_type)
    net, description, content = saved
    if not description.bayesian or not any(True for _ in weight_posteriors(net)):
        raise UserError(f"{path} holds a frequentist network, which has no signal-to-noise ratio")
    require_classification(saved, path)
    data = load_training_data(saved, path, args.data_dir)
    classifier = Classifier.from_description(net, description, path)

    curve = []
    fractions = default_fractions(net, args.fraction)
    for row in pruning_curve(classifier, data.valid, fractions, args.by_layer, args.num_samples):
        curve.append(row)
        label = "log α > 3" if row["fraction"] is None else f"{row['fraction']:.0%}"
        print(f"pruned {label:>9}  zeros {row['sparsity']:.2%}  validation accuracy {row['accuracy']:.2%}  "
              f"nll {row['nll']:.4f}", flush=True)  # fmt: skip
    chosen = largest_fraction(curve, args.max_loss) if args.fraction is None else args.fraction
    smaller = pruned(net, chosen, args.by_layer)
    before, after = (
        split_scores(tested, data.test, args.num_samples) for tested in (classifier, replace(classifier, net=smaller))
    )
    origin = {"settings": content["settings"], "validation": content.get("validation")}
    save_network(save_path, smaller, description, **origin, pruned=chosen)
    report = {"dataset": data.name, "by_layer": args.by_layer, "samples": args.num_samples, "curve": curve,
              "chosen": chosen, "sparsity": sparsity(smaller), "test": {"before": before, "after": after}}  # fmt: skip
    write_json(save_path.with_suffix(".json"), report)
    title = f"{description.net_type} on {data.name}, validation"
    picture = plot_pruning(save_path.with_suffix(".png"), curve, chosen, title)
    print(f"test  accuracy {before['accuracy']:.2%} to {after['accuracy']:.2%}  nll {before['nll']:.4f} to "
          f"{after['nll']:.4f}  with {report['sparsity']:.2%} of the weights at 0\n"
          f"written to {save_path}, {picture}")  # fmt: skip
    return report


def main(flags: Sequence[str] | None = None) -> None:
    """Prune by the command line; a user's mistake exits with code 2."""
    with report_user_errors():
        run(parse(sys.argv[1:] if flags is None else flags))


if __name__ == "__main__":
    main()
