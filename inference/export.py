"""Export a trained network for other machines: its means, and a sampler that returns its uncertainty.

Writes <name>.mean and <name>.predictive beside the checkpoint, as .pt2 (torch.export) and .onnx; with --prediction
moments, <name>.moments in place of the latter, which predicts in one pass and without random numbers. All take images
[n, channels, height, width] with pixels in [0, 1], of the size that the network was trained on, or with --any_size of
others too. They return probabilities, or for regression means, and uncertainties. With --check they are compared with
the library on the test split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

import torch
from torch import Tensor

from inference.classifier import Classifier, load_finite_network
from inference.deployment import (
    MeanNetwork,
    MomentNetwork,
    PredictiveNetwork,
    compare_mean_network,
    compare_predictive_network,
    export_network,
    largest_difference,
)
from inference.evaluation import load_training_data
from inference.prediction import METHODS
from inference.regressor import Regressor
from inference.task_reports import load_for_task
from support import OneLineParser, argument, report_user_errors, tune_cpu, whole


def parse(flags: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = OneLineParser("python -m inference.export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--weights_path", type=Path, required=True, help="a checkpoint of main_bayesian.py")
    add(
        "--num_samples",
        type=argument(whole(1)),
        default=25,
        help="draws per call of the predictive network (%(default)s)",
    )
    add("--prediction", choices=METHODS, default="draws", help="what the uncertainty is from (%(default)s)")
    add("--any_size", action="store_true", help="the files take images of other heights and widths too")
    add("--save_dir", type=Path, help="where the files go (beside the checkpoint)")
    add(
        "--check",
        type=argument(whole(0)),
        default=0,
        metavar="IMAGES",
        help="compare on this many test images, chosen at random (0: no comparison)",
    )
    add("--net_type", help="package.module:factory, if the network is your own")
    add("--data_dir", default="data", help="where downloaded data lies, for --check (%(default)s)")
    return parser.parse_args(flags)


def run(args: argparse.Namespace) -> list[Path]:
    """Write the files, compare them if `args.check` is above 0, and return their paths."""
    tune_cpu()
    saved = load_finite_network(args.weights_path, net_type=args.net_type)
    description = saved.description
    data = load_training_data(saved, args.weights_path, args.data_dir) if args.check else None
    predictor = load_for_task(saved, args.weights_path)
    black = torch.zeros(1, *predictor.image_shape, dtype=torch.uint8)
    predictor.predict(black, num_samples=1)  # a network whose outputs are not finite is not exported
    how = predictor.mean, predictor.std, predictor.likelihood
    networks: dict[str, Any] = {"mean": MeanNetwork(saved.net, *how)}
    if description.bayesian and args.prediction == "moments":
        outputs = description.likelihood.outputs(len(description.classes))
        networks["moments"] = MomentNetwork(saved.net, outputs, *how)
    elif description.bayesian:
        networks["predictive"] = PredictiveNetwork(saved.net, args.num_samples, *how)
    for network in networks.values():
        network.temperature = predictor.temperature if isinstance(predictor, Classifier) else 1.0
    folder = args.save_dir or args.weights_path.parent
    paths = {
        (name, suffix): folder / f"{args.weights_path.stem}.{name}{suffix}"
        for name in networks
        for suffix in (".pt2", ".onnx")
    }
    for (name, _), path in paths.items():
        export_network(networks[name], len(predictor.mean), predictor.image_size, path, any_size=args.any_size)
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB  {', '.join(networks[name].outputs)}", flush=True)
    if data is not None:
        images, targets = next(data.test.sample(args.check, seed=0).batches(args.check))
        _check(predictor, networks, {name: paths[name, ".onnx"] for name in networks}, images, targets)
    return list(paths.values())


def _check(
    predictor: Classifier | Regressor,
    networks: dict[str, Any],
    onnx_files: dict[str, Path],
    images: Tensor,
    targets: Tensor,
) -> None:
    network = networks["mean"]
    mean = compare_mean_network(network, onnx_files["mean"], images, targets)
    what = network.outputs[0].replace("probs", "probabilities").replace("mean", "means")
    print(f"\n{len(images):,} test images, onnxruntime beside the library\n"
          f"mean network: {what} differ by at most {mean['largest_difference']:.1e}")  # fmt: skip
    if "moments" in onnx_files:
        difference = largest_difference(predictor, onnx_files["moments"], images)
        print(f"network of moments: {what} differ by at most {difference:.1e}")
    if "predictive" in onnx_files:
        rows = compare_predictive_network(networks["predictive"], onnx_files["predictive"], predictor, images, targets)
        print(f"{'predictive network':<44}{'onnxruntime':>12}{'library':>12}{'another seed':>14}")
        for name, (exported, library, other_seed) in rows.items():
            print(f"{name:<44}{exported:>12.5f}{library:>12.5f}{other_seed:>14.5f}")
    int8, float32 = (
        f"rmse {mean[kind]:.4g}" if network.is_regression else f"accuracy {mean[kind]:.2%}"
        for kind in ("int8", "float32")
    )
    print(f"int8 mean network: {int8} (float32 {float32.split()[1]}), {mean['int8_time']:.2f} of its time")


def main(flags: Sequence[str] | None = None) -> None:
    """Export by the command line; a user's mistake exits with code 2."""
    with report_user_errors():
        run(parse(sys.argv[1:] if flags is None else flags))


if __name__ == "__main__":
    main()
