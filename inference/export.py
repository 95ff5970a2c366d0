"""Export a trained network for other machines: its means, and a sampler that returns its uncertainty.

Writes <name>.mean and <name>.predictive beside the checkpoint, as .pt2 (torch.export) and .onnx; with --prediction
moments, <name>.moments in place of the latter, which predicts in one pass and without random numbers. All take images
[n, channels, height, width], of the size that the network was trained on, with pixels in [0, 1]. With --check they are
compared with the library on the test split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

import torch
from torch import Tensor

from inference.classifier import Classifier, load_finite_network
from inference.deployment import (
    DeployedNetwork,
    MeanNetwork,
    MomentNetwork,
    PredictiveNetwork,
    compare_mean_network,
    compare_predictive_network,
    export_network,
    largest_difference,
)
from inference.evaluation import load_training_data, require_classification
from inference.prediction import METHODS
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
    add("--save_dir", type=Path, help="where the files go (beside the checkpoint)")
    add(
        "--check",
        type=argument(whole(0)),
        default=0,
        metavar="IMAGES",
        help="compare on this many test images (0: no comparison)",
    )
    add("--net_type", help="package.module:factory, if the network is your own")
    add("--data_dir", default="data", help="where downloaded data lies, for --check (%(default)s)")
    return parser.parse_args(flags)


def run(args: argparse.Namespace) -> list[Path]:
    """Write the files, compare them if `args.check` is above 0, and return their paths."""
    tune_cpu()
    saved = load_finite_network(args.weights_path, net_type=args.net_type)
    require_classification(saved, args.weights_path)
    net, description, _ = saved
    data = load_training_data(saved, args.weights_path, args.data_dir) if args.check else None
    classifier = Classifier.from_description(net, description, args.weights_path)
    black = torch.zeros(1, *classifier.image_shape, dtype=torch.uint8)
    classifier.predict(black, num_samples=1)  # a network whose outputs are not finite is not exported
    mean_network = MeanNetwork(net, classifier.mean, classifier.std)
    networks: dict[str, DeployedNetwork] = {"mean": mean_network}
    if description.bayesian and args.prediction == "moments":
        networks["moments"] = MomentNetwork(net, len(classifier.classes), classifier.mean, classifier.std)
    elif description.bayesian:
        networks["predictive"] = PredictiveNetwork(net, args.num_samples, classifier.mean, classifier.std)
    folder = args.save_dir or args.weights_path.parent
    paths = {
        (name, suffix): folder / f"{args.weights_path.stem}.{name}{suffix}"
        for name in networks
        for suffix in (".pt2", ".onnx")
    }
    for (name, _), path in paths.items():
        export_network(networks[name], len(classifier.mean), classifier.image_size, path)
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", flush=True)
    if data is not None:
        images, labels = next(data.test.batches(min(args.check, len(data.test))))
        _check(
            classifier,
            mean_network,
            {name: paths[name, ".onnx"] for name in networks},
            images,
            labels,
            args.num_samples,
        )
    return list(paths.values())


def _check(
    classifier: Classifier,
    mean_network: MeanNetwork,
    onnx_files: dict[str, Path],
    images: Tensor,
    labels: Tensor,
    num_samples: int,
) -> None:
    mean = compare_mean_network(mean_network, onnx_files["mean"], images, labels)
    print(f"\n{len(labels):,} test images, onnxruntime beside the library\n"
          f"mean network: probabilities differ by at most {mean['largest_difference']:.1e}")  # fmt: skip
    if "moments" in onnx_files:
        difference = largest_difference(classifier, onnx_files["moments"], images)
        print(f"network of moments: probabilities differ by at most {difference:.1e}")
    if "predictive" in onnx_files:
        rows = compare_predictive_network(classifier, onnx_files["predictive"], images, labels, num_samples)
        print(f"{'predictive network':<44}{'onnxruntime':>12}{'library':>12}{'another seed':>14}")
        for name, (exported, library, other_seed) in rows.items():
            print(f"{name:<44}{exported:>12.5f}{library:>12.5f}{other_seed:>14.5f}")
    print(f"int8 mean network: accuracy {mean['int8_accuracy']:.2%} (float32 {mean['float32_accuracy']:.2%}), "
          f"{mean['int8_time']:.2f} of its time")  # fmt: skip


def main(flags: Sequence[str] | None = None) -> None:
    """Export by the command line; a user's mistake exits with code 2."""
    with report_user_errors():
        run(parse(sys.argv[1:] if flags is None else flags))


if __name__ == "__main__":
    main()
