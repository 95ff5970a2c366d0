"""Prune a trained Bayesian network: how accuracy and NLL fall as the weights of least |μ|/σ are set to 0.

The curve is of the validation split, and the fraction is chosen by it; the test split is looked at once, for the
network as it was and as it is pruned. The data set and its split are those that the checkpoint was trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from images import CHUNK, Split, load_data, normalize
from inference import metrics
from inference.prediction import predict_batches
from inference.pruning import pruned, sparsity
from layers import AlphaPosterior
from models import load_network, save_network
from support import (
    BLUE,
    ORANGE,
    OneLineParser,
    UserError,
    argument,
    figure_style,
    report_user_errors,
    save_figure,
    tune_cpu,
    whole,
    write_json,
)

FRACTIONS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = OneLineParser("python -m inference.prune", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--weights_path", type=Path, required=True, help="a checkpoint of main_bayesian.py")
    add("--fraction", type=float, help="how many of the weights go (chosen on the validation split)")
    add(
        "--max_loss",
        type=float,
        default=0.003,
        help="accuracy that may be lost on validation when it is chosen (0.003: 0.3 points)",
    )
    add("--by_layer", action="store_true", help="the same fraction of every tensor rather than of all together")
    add("--num_samples", type=argument(whole(1)), default=25, help="posterior samples a prediction (%(default)s)")
    add("--net_type", help="package.module:factory, if the network is your own")
    add("--data_dir", default="data", help="where downloaded data lies (%(default)s)")
    add("--save_path", type=Path, help="the pruned checkpoint (<weights_path less .pt>.pruned.pt)")
    arguments = parser.parse_args(given)
    if arguments.fraction is not None and not 0 <= arguments.fraction <= 1:
        parser.error(f"--fraction must be from 0 to 1, got {arguments.fraction}")
    return arguments


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The curve, the pruned checkpoint and the two tests; returns what `pruning.json` holds."""
    tune_cpu()
    path: Path = arguments.weights_path
    net, description, content = load_network(path, net_type=arguments.net_type)
    if not description.bayesian:
        raise UserError(f"{path} holds a frequentist network, which has no signal-to-noise ratio")
    trained = content["settings"]
    data = load_data(trained["dataset"], arguments.data_dir, trained["valid_size"], trained["seed"])
    if (data.mean, data.classes) != (description.mean, description.classes):
        raise UserError(f"{path} was trained on another {data.name} than the one that is here")

    def scored(network: nn.Module, split: Split) -> dict[str, float]:
        chunks = (normalize(images, data.mean, data.std) for images, _ in split.batches(CHUNK))
        return metrics.scores(predict_batches(network, chunks, arguments.num_samples).probs, split.labels)

    curve = []
    settings: list[float | None] = sorted(
        {*FRACTIONS, *([arguments.fraction] if arguments.fraction is not None else [])}
    )
    if any(isinstance(module, AlphaPosterior) for module in net.modules()):
        settings.append(None)  # log α > 3
    for fraction in settings:
        network = pruned(net, fraction, arguments.by_layer)
        row = {"fraction": fraction, "sparsity": sparsity(network), **scored(network, data.valid)}
        curve.append(row)
        named = "log α > 3" if fraction is None else f"{fraction:.0%}"
        print(f"pruned {named:>9}  zeros {row['sparsity']:.2%}  validation accuracy {row['accuracy']:.2%}  "
              f"nll {row['nll']:.4f}", flush=True)  # fmt: skip
    chosen = arguments.fraction
    if chosen is None:
        least = curve[0]["accuracy"] - arguments.max_loss
        chosen = max(row["fraction"] for row in curve if row["fraction"] is not None and row["accuracy"] >= least)
    smaller = pruned(net, chosen, arguments.by_layer)
    before, after = scored(net, data.test), scored(smaller, data.test)
    save_path = arguments.save_path or path.with_suffix(".pruned.pt")
    save_network(save_path, smaller, description, settings=trained, validation=content["validation"], pruned=chosen)
    report = {"dataset": data.name, "by_layer": arguments.by_layer, "samples": arguments.num_samples, "curve": curve,
              "chosen": chosen, "sparsity": sparsity(smaller), "test": {"before": before, "after": after}}  # fmt: skip
    write_json(save_path.with_suffix(".json"), report)
    picture = plot(save_path.with_suffix(".png"), curve, chosen, f"{description.net_type} on {data.name}, validation")
    print(f"test  accuracy {before['accuracy']:.2%} to {after['accuracy']:.2%}  nll {before['nll']:.4f} to "
          f"{after['nll']:.4f}  with {report['sparsity']:.2%} of the weights at 0\n"
          f"written to {save_path}, {picture}")  # fmt: skip
    return report


@figure_style()
def plot(path: Path, curve: Sequence[dict[str, Any]], chosen: float, title: str) -> Path:
    """Accuracy and NLL against the fraction of weights that are left, as a picture."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    rows = [row for row in curve if row["fraction"] is not None]
    for ax, name, label, color in zip(
        figure.subplots(1, 2), ("accuracy", "nll"), ("accuracy", "NLL (nats per example)"), (BLUE, ORANGE), strict=True
    ):
        ax.plot([100 * (1 - row["sparsity"]) for row in rows], [row[name] for row in rows], "o-", color=color, ms=4)
        ax.axvline(100 * (1 - chosen), color="0.6", linestyle=":")
        ax.annotate(f"chosen: {1 - chosen:.0%} left", (100 * (1 - chosen), 0.5), xycoords=("data", "axes fraction"),
                    rotation=90, ha="right", va="center", color="0.4")  # fmt: skip
        ax.set(xscale="log", xlabel="weights that are left (%)", ylabel=label)
        ax.invert_xaxis()
        ax.xaxis.set_major_formatter("{x:g}")
    figure.suptitle(title)
    return save_figure(figure, path)


def main(given: Sequence[str] | None = None) -> None:
    """Prune by the arguments; a user's mistake exits with code 2."""
    with report_user_errors():
        run(parse(sys.argv[1:] if given is None else given))


if __name__ == "__main__":
    main()
