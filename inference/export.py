"""Export a trained network for other machines: its means, and a sampler that tells what it does not know.

Writes <name>.mean and <name>.predictive beside the checkpoint, as .pt2 (torch.export) and .onnx. Both take images
[n, channels, 32, 32] with pixels in [0, 1]. With --check they are compared with the library on the test split.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from images import ImageData, load_data, normalize
from inference.deployment import Deployed, MeanNetwork, PredictiveNetwork, export, quantized
from inference.metrics import accuracy
from inference.prediction import posterior_predictive
from models import IMAGE_SIZE, load_network
from support import OneLineParser, UserError, argument, report_user_errors, tune_cpu, whole


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = OneLineParser("python -m inference.export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--weights_path", type=Path, required=True, help="a checkpoint of main_bayesian.py")
    add(
        "--num_samples",
        type=argument(whole(1)),
        default=25,
        help="draws in a call of the predictive network (%(default)s)",
    )
    add("--save_dir", type=Path, help="where the files go (beside the checkpoint)")
    add(
        "--check", type=argument(whole(0)), default=0, metavar="IMAGES", help="compare on so many test images (0: none)"
    )
    add("--net_type", help="package.module:factory, if the network is your own")
    add("--data_dir", default="data", help="where downloaded data lies, for --check (%(default)s)")
    return parser.parse_args(given)


def run(arguments: argparse.Namespace) -> list[Path]:
    """Write the files, compare them if asked, and return their paths."""
    tune_cpu()
    net, description, content = load_network(arguments.weights_path, net_type=arguments.net_type)
    moments = description.mean, description.std
    networks: dict[str, Deployed] = {"mean": MeanNetwork(net, *moments)}
    if description.bayesian:
        networks["predictive"] = PredictiveNetwork(net, arguments.num_samples, *moments)
    folder = arguments.save_dir or arguments.weights_path.parent
    written = []
    for name, network in networks.items():
        for ending in (".pt2", ".onnx"):
            path = folder / f"{arguments.weights_path.stem}.{name}{ending}"
            written.append(export(network, len(description.mean), IMAGE_SIZE, path))
            print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", flush=True)
    if arguments.check:
        trained = content["settings"]
        data = load_data(trained["dataset"], arguments.data_dir, trained["valid_size"], trained["seed"])
        _check(networks, written, data, arguments)
    return written


def _check(
    networks: dict[str, Deployed], paths: Sequence[Path], data: ImageData, arguments: argparse.Namespace
) -> None:
    try:
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise UserError("--check runs the ONNX files: pip install onnxruntime") from error
    images, labels = next(data.test.batches(min(arguments.check, len(data.test))))
    inputs = images.float() / 255

    def elsewhere(name: str) -> list[Tensor]:
        path = next(path for path in paths if path.name.endswith(f".{name}.onnx"))
        outputs = InferenceSession(str(path)).run(None, {"images": inputs.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    with torch.inference_mode():
        found, expected = elsewhere("mean")[0], networks["mean"](inputs)
        mean = networks["mean"]
        assert isinstance(mean, MeanNetwork)
        small = quantized(mean)
        times = {name: _seconds(network, inputs) for name, network in (("float32", mean), ("int8", small))}
        int8 = small(inputs)
    print(f"\n{len(labels):,} test images, onnxruntime beside the library\n"
          f"mean network: probabilities differ by at most {float((found - expected).abs().max()):.1e}")  # fmt: skip
    if "predictive" in networks:
        net, samples = networks["predictive"].net, arguments.num_samples
        own = [posterior_predictive(net, normalize(images, data.mean, data.std), samples, seed=seed) for seed in (0, 1)]
        probs, epistemic, aleatoric = elsewhere("predictive")
        rows = {
            "accuracy": [accuracy(p, labels) for p in (probs, own[0].probs, own[1].probs)],
            "epistemic, mean (nats)": [float(e.mean()) for e in (epistemic, *(o.mutual_information for o in own))],
            "aleatoric, mean (nats)": [float(a.mean()) for a in (aleatoric, *(o.expected_entropy for o in own))],
            "epistemic, correlation with the library's": [
                _correlation(e, own[0].mutual_information) for e in (epistemic, own[0].mutual_information,
                                                                     own[1].mutual_information)
            ],
        }  # fmt: skip
        print(f"{'predictive network':<44}{'onnxruntime':>12}{'library':>12}{'another seed':>14}")
        for name, (one, two, three) in rows.items():
            print(f"{name:<44}{one:>12.5f}{two:>12.5f}{three:>14.5f}")
    print(f"int8 mean network: accuracy {accuracy(int8, labels):.2%} (float32 {accuracy(expected, labels):.2%}), "
          f"{times['int8'] / times['float32']:.2f} of its time")  # fmt: skip


def _seconds(network: Any, inputs: Tensor) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        network(inputs)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


def main(given: Sequence[str] | None = None) -> None:
    """Export by the arguments; a user's mistake exits with code 2."""
    with report_user_errors():
        run(parse(sys.argv[1:] if given is None else given))


if __name__ == "__main__":
    main()
