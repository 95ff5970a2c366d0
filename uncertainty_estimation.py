"""Ask a trained network what it does not know: known test images against unknown ones, by default notMNIST.

Prints the mean epistemic and aleatoric uncertainty of every mini-batch and how well each score tells the two
sets apart; writes the same as uncertainty.json, and pictures. Images of any size are resized to the network's.
Under torchrun the processes share the images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from images import CHUNK, load_data, normalize, read_images
from inference import metrics, plots
from inference.prediction import Predictive, predict_batches, predict_together
from models import Description, check_net_type, file_name, load_network
from support import (
    ALONE,
    OneLineParser,
    UserError,
    World,
    argument,
    process_group,
    report_user_errors,
    tune_cpu,
    whole,
    write_json,
)

SHIFTED = 2000  # images that are rotated or made noisy
ANGLES = range(0, 181, 15)  # degrees
NOISES = [level / 10 for level in range(11)]  # standard deviation of the noise, pixels being in [0, 1]


@dataclass(frozen=True)
class Network:
    """A trained network, how its images are normalized, and the processes that predict with it."""

    net: nn.Module
    description: Description
    world: World

    @classmethod
    def load(cls, path: Path, net_type: str, family: str, device: torch.device, world: World) -> Network:
        net, description, _ = load_network(path, device, net_type)
        if description.bayesian != (family == "bayesian"):
            raise UserError(
                f"{path} does not hold a {family} network: --weights_path is of main_bayesian.py, "
                f"--frequentist_weights of main_frequentist.py"
            )
        if description.net_type != net_type:
            raise UserError(
                f"{path} holds a {description.net_type}, not a {net_type}: give --net_type {description.net_type}"
            )
        return cls(net, description, world)

    def predict(self, images: Tensor, arguments: argparse.Namespace) -> Predictive:
        """Of uint8 images [n, channels, height, width]."""

        def predict_at(indices: Tensor) -> Predictive:
            chunks = images[indices].split(CHUNK)
            inputs = (normalize(chunk, self.description.mean, self.description.std) for chunk in chunks)
            return predict_batches(self.net, inputs, arguments.num_samples, seed=arguments.seed)

        return predict_together(len(images), predict_at, self.world)


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--net_type", type=_net_type, default="lenet", help="the architecture of the weights (%(default)s)")
    add(
        "--weights_path",
        type=Path,
        default=Path("checkpoints/MNIST/bayesian/model_lenet.pt"),
        help="of main_bayesian.py (%(default)s)",
    )
    add("--frequentist_weights", type=Path, help="of main_frequentist.py: adds the twin to every table and picture")
    add("--dataset", default="MNIST", help="whose test split is the known images (%(default)s)")
    add("--data_dir", default="data", help="where downloaded data lies or goes (%(default)s)")
    add(
        "--not_mnist_dir",
        type=Path,
        default=Path("data"),
        help="holds notMNIST_small or notMNIST_large, or is a folder of A..J (%(default)s)",
    )
    add("--ood_dir", type=Path, help="a folder of other unknown images, instead of notMNIST")
    add("--num_batches", type=argument(whole(1)), help="mini-batches of each set; all of them if not given")
    add("--num_samples", type=argument(whole(1)), default=25, help="posterior samples (%(default)s)")
    add("--batch_size", type=argument(whole(1)), default=1000, help="images a mini-batch (%(default)s)")
    add(
        "--seed",
        type=argument(whole(0)),
        default=0,
        help="of the posterior samples and of the order of the unknown images (%(default)s)",
    )
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps …")
    add(
        "--rotate",
        dest="rotation",
        action="store_true",
        help="also accuracy and uncertainty against rotation from 0° to 180°",
    )
    add("--noise", action="store_true", help="also accuracy and uncertainty against noise on the pixels")
    add("--save_dir", type=Path, help="where uncertainty.json and the pictures go (uncertainty/ beside the weights)")
    return parser.parse_args(given)


def _net_type(text: str) -> str:
    try:
        return check_net_type(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {error}, got {text!r}") from error


def run(arguments: argparse.Namespace, world: World = ALONE) -> None:
    """Predict, together with the other processes of `world`; the leading one prints, pictures and writes."""
    tune_cpu()
    device = world.device(arguments.device)
    networks = {"bayesian": Network.load(arguments.weights_path, arguments.net_type, "bayesian", device, world)}
    if arguments.frequentist_weights:
        networks["frequentist"] = Network.load(
            arguments.frequentist_weights, arguments.net_type, "frequentist", device, world
        )
    # Only the test split is used, and no seed or validation size changes that.
    with world.local_main_first():  # it may download
        data = load_data(arguments.dataset, arguments.data_dir, valid_size=0.1, seed=0)
    for family, loaded in networks.items():
        its = loaded.description
        if (its.classes, len(its.mean)) != (data.classes, data.channels):
            raise UserError(
                f"the {family} weights know {len(its.classes)} classes of {len(its.mean)}-channel images, "
                f"{data.name} has {len(data.classes)} of {data.channels}: give the --dataset that they were trained on"
            )
    folder = arguments.ood_dir or _not_mnist(arguments.not_mnist_dir)
    unknown, skipped = read_images(folder, data.channels)
    if skipped and world.is_main:
        print(f"passed over {len(skipped)} unreadable of {len(skipped) + len(unknown)} images, the first {skipped[0]}")
    unknown = unknown[torch.randperm(len(unknown), generator=torch.Generator().manual_seed(arguments.seed))]
    limit = arguments.num_batches * arguments.batch_size if arguments.num_batches else None
    chosen = torch.arange(len(data.test))[:limit]
    known, labels = next(data.test.batches(len(chosen), chosen))
    unknown = unknown[:limit]
    if min(len(known), len(unknown)) < world.size:
        raise UserError(f"{world.size} processes are too many for {len(known)} and {len(unknown)} images")

    started = time.perf_counter()
    predicted = {name: (n.predict(known, arguments), n.predict(unknown, arguments)) for name, n in networks.items()}
    seconds = time.perf_counter() - started
    curves = {
        kind: {
            network: [_shifted(n, shift(known[:SHIFTED], s), labels[:SHIFTED], s, arguments) for s in shifts]
            for network, n in networks.items()
        }
        for kind, (shifts, shift, _) in SHIFTS.items()
        if getattr(arguments, kind)
    }
    if not world.is_main:
        return
    names = (f"{data.name} test", folder.resolve().name)
    report: dict[str, Any] = {
        "known": names[0], "unknown": names[1], "known_images": len(known), "unknown_images": len(unknown),
        "skipped": len(skipped), "samples": arguments.num_samples, "seed": arguments.seed,
        "prediction_seconds": round(seconds, 2), "networks": {},
    }  # fmt: skip
    for network, sets in predicted.items():
        print(f"\n{network} {arguments.net_type}: mean uncertainty per mini-batch of {arguments.batch_size}")
        batches = {name: _batches(p, arguments.batch_size) for name, p in zip(names, sets, strict=True)}
        for name, rows in batches.items():
            _print_batches(name, rows)
        wrong = sets[0].probs.argmax(-1) != labels
        report["networks"][network] = {
            "batches": batches,
            "known": metrics.scores(sets[0].probs, labels)
            | {
                "adaptive_ece": metrics.adaptive_ece(sets[0].probs, labels),
                "risk_coverage_area": metrics.risk_coverage_area(sets[0].entropy, wrong),
            },
            "novelty": {
                name: metrics.novelty(score(sets[0]), score(sets[1])) for name, score in metrics.SCORES.items()
            },
        }
    _print_summary(report)
    report |= curves
    save_dir = arguments.save_dir or arguments.weights_path.parent / file_name(arguments.net_type) / "uncertainty"
    classes = networks["bayesian"].description.classes
    pictures = [
        plots.plot_scores(save_dir / f"scores_{network}.png", *sets, names, f"{network} {arguments.net_type}")
        for network, sets in predicted.items()
    ]
    pictures += [
        plots.plot_reliability(save_dir / "reliability.png", {n: s[0].probs for n, s in predicted.items()}, labels),
        plots.plot_risk_coverage(save_dir / "risk_coverage.png", {n: s[0] for n, s in predicted.items()}, labels),
    ]
    for network, sets in predicted.items():
        shown = dict(zip(names, ((known, sets[0]), (unknown, sets[1])), strict=True))
        pictures.append(plots.plot_sheet(save_dir / f"images_{network}.png", shown, classes))
    for kind, curve in curves.items():
        pictures.append(plots.plot_shift(save_dir / f"{kind}.png", curve, SHIFTS[kind][2]))
    write_json(save_dir / "uncertainty.json", report)
    print(f"\nwritten to {save_dir}: uncertainty.json, {', '.join(picture.name for picture in pictures)}")


def _not_mnist(folder: Path) -> Path:
    """notMNIST_small or notMNIST_large below `folder`, or `folder` itself if it has the letters A to J."""
    for candidate in (folder / "notMNIST_small", folder / "notMNIST_large", folder):
        if all((candidate / letter).is_dir() for letter in "ABCDEFGHIJ"):
            return candidate
    raise UserError(
        f"{folder} has no notMNIST_small or notMNIST_large and no folders A to J: give --not_mnist_dir, or another "
        f"set of unknown images by --ood_dir"
    )


KINDS = ("epistemic_softmax", "aleatoric_softmax", "epistemic_normalized", "aleatoric_normalized")


def _batches(predictive: Predictive, batch_size: int) -> list[dict[str, float]]:
    """Mean traces of each mini-batch."""
    columns = [getattr(predictive, kind).split(batch_size) for kind in KINDS]
    return [dict(zip(KINDS, (c.mean().item() for c in row), strict=True)) for row in zip(*columns, strict=True)]


def _print_batches(name: str, rows: list[dict[str, float]]) -> None:
    print(f"{name:<20}{'softmax':>24}{'normalized':>26}\n{'batch':<20}" + f"{'epistemic':>13}{'aleatoric':>13}" * 2)
    for index, row in enumerate(rows):
        print(f"{index + 1:<20}" + "".join(f"{row[kind]:>13.6f}" for kind in KINDS))
    means = (sum(row[kind] for row in rows) / len(rows) for kind in KINDS)
    print(f"{'mean of batches':<20}" + "".join(f"{mean:>13.6f}" for mean in means))


def _print_summary(report: dict[str, Any]) -> None:
    networks = report["networks"]
    print(f"\n{report['known']} ({report['known_images']:,} images)")
    for name in next(iter(networks.values()))["known"]:
        print(
            f"{name.replace('_', ' '):<26}"
            + "".join(f"{network} {n['known'][name]:<12.4g}" for network, n in networks.items())
        )
    print(f"\n{report['known']} against {report['unknown']} ({report['unknown_images']:,} images)")
    print(f"{'':<26}" + "".join(f"{network:^33}" for network in networks))
    print(f"{'score':<26}" + f"{'AUROC':>9}{'AUPR':>9}{'FPR95':>9}      " * len(networks))
    for score in metrics.SCORES:
        cells = (n["novelty"][score] for n in networks.values())
        print(f"{score:<26}" + "".join(f"{c['auroc']:>9.4f}{c['aupr']:>9.4f}{c['fpr95']:>9.4f}      " for c in cells))
    print(f"predicted in {report['prediction_seconds']:.1f} s with {report['samples']} samples")


def _rotated(images: Tensor, angle: float) -> Tensor:
    return transforms.rotate(images, angle, transforms.InterpolationMode.BILINEAR) if angle else images


def _noisy(images: Tensor, level: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * level * noise).clamp(0, 255).round().to(torch.uint8)


def _shifted(
    network: Network, images: Tensor, labels: Tensor, shift: float, arguments: argparse.Namespace
) -> dict[str, float]:
    predictive = network.predict(images, arguments)
    return {
        "shift": shift,
        "accuracy": metrics.accuracy(predictive.probs, labels),
        "entropy": predictive.entropy.mean().item(),
        "mutual_information": predictive.mutual_information.mean().item(),
        "epistemic": predictive.epistemic_softmax.mean().item(),
        "aleatoric": predictive.aleatoric_softmax.mean().item(),
    }


SHIFTS = {
    "rotation": (ANGLES, _rotated, "rotation (degrees)"),
    "noise": (NOISES, _noisy, "standard deviation of the noise"),
}


def main(given: Sequence[str] | None = None) -> None:
    """The report by the arguments; a user's mistake exits with code 2."""
    with report_user_errors():
        arguments = parse(sys.argv[1:] if given is None else given)
        with process_group(arguments.device) as world:
            run(arguments, world)


if __name__ == "__main__":
    main()
