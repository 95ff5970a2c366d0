"""Ask a trained network what it does not know: known test images against unknown ones, by default notMNIST.

Prints the mean epistemic and aleatoric uncertainty of every mini-batch, how well each score separates known from
unknown images, and how the network fares under corruption; writes the same to uncertainty.json, and pictures. Images
of any size are resized to the network's. Under torchrun the processes share the images.
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

from images import CORRUPTIONS, UNKNOWN
from inference import (
    METHODS,
    SHIFTS,
    Classifier,
    ImageSets,
    Regressor,
    evaluate,
    evaluate_task,
    load_finite_network,
    load_for_task,
    load_test_data,
    plots,
    print_report,
    print_task_report,
)
from models import SavedNetwork, check_net_type, file_name
from support import (
    ALONE,
    OneLineParser,
    UserError,
    World,
    argument,
    nearest,
    process_group,
    report_user_errors,
    tune_cpu,
    whole,
    write_json,
)


def parse(flags: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, allow_abbrev=False, formatter_class=raw)
    add, count, seed = parser.add_argument, argument(whole(1)), argument(whole(0))
    weights = "checkpoints/MNIST/bayesian/model_lenet.pt"
    add("--net_type", type=argument(check_net_type), default="lenet", help="the network of the weights (%(default)s)")
    add("--weights_path", type=Path, default=weights, help="a checkpoint of main_bayesian.py (%(default)s)")
    add("--frequentist_weights", type=Path, help="one of main_frequentist.py: adds the twin to tables and pictures")
    add("--dataset", default="MNIST", help="the data set whose test split is the known images (%(default)s)")
    add("--data_dir", default="data", help="where downloaded data lies or goes (%(default)s)")
    add("--not_mnist_dir", type=Path, default="data", help="has notMNIST_small, notMNIST_large or A..J (%(default)s)")
    add("--ood_dir", type=Path, help="a folder of other unknown images, instead of notMNIST")
    add("--unknown", nargs="+", metavar="NAME", default=[], help=f"unknown sets: {', '.join(UNKNOWN)}, or folders")
    add("--num_batches", type=count, help="mini-batches of each set (default: all)")
    add("--num_samples", type=count, default=25, help="posterior samples (%(default)s)")
    add("--prediction", choices=METHODS, default="draws", help="by posterior samples, or by moments in one pass")
    add("--batch_size", type=count, default=1000, help="images per mini-batch (%(default)s)")
    add("--seed", type=seed, default=0, help="of the samples and of the order of unknown images (%(default)s)")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps …")
    add("--rotate", dest="rotation", action="store_true", help="also accuracy and uncertainty under rotation to 180°")
    add("--noise", action="store_true", help="also accuracy and uncertainty under noise on the pixels")
    kinds = ", ".join(CORRUPTIONS)
    add("--shift", nargs="*", metavar="KIND", help=f"also accuracy, NLL, ECE and entropy under corruption: {kinds}")
    add("--save_dir", type=Path, help="where uncertainty.json and the pictures go (uncertainty/ beside the weights)")
    args = parser.parse_args(flags)
    for kind in args.shift or ():
        if kind not in CORRUPTIONS:
            parser.error(f"--shift: unknown corruption {kind!r}: did you mean {nearest(kind, CORRUPTIONS)!r}?")
    return args


def run(args: argparse.Namespace, world: World = ALONE) -> None:
    """Predict, together with the other processes of `world`; the main one prints and writes."""
    tune_cpu()
    device = world.device(args.device)
    paths = {"bayesian": args.weights_path, "frequentist": args.frequentist_weights}
    saved = {family: _load(path, args.net_type, family, device) for family, path in paths.items() if path}
    with world.local_main_first():  # it may download
        data = load_test_data({paths[family]: each for family, each in saved.items()}, args.dataset, args.data_dir)
    task = saved["bayesian"].description.task
    letters = task.get("task", "classification") == "classification" and not args.ood_dir
    sets = args.unknown or (["notMNIST"] if letters else [])
    unknown = {name: args.not_mnist_dir if name == "notMNIST" else args.data_dir for name in sets}
    if args.ood_dir:
        unknown[str(args.ood_dir)] = args.data_dir
    limit = args.num_batches * args.batch_size if args.num_batches else None
    images = ImageSets.read(data, unknown, args.seed, limit)
    if world.is_main and images.notes:
        print(*images.notes, sep="\n")
    if task.get("task", "classification") != "classification":
        _run_task(
            args, {family: load_for_task(each, paths[family]) for family, each in saved.items()}, images, task, world
        )
        return
    classifiers = {family: Classifier.from_saved(each, paths[family]) for family, each in saved.items()}
    predictives, report = evaluate(
        classifiers, images, num_samples=args.num_samples, seed=args.seed, method=args.prediction,
        batch_size=args.batch_size, shifts=[name for name in SHIFTS if getattr(args, name)],
        corruptions=() if args.shift is None else args.shift or tuple(CORRUPTIONS), world=world,
    )  # fmt: skip
    if not world.is_main:
        return
    print_report(report, args.net_type, args.batch_size)
    save_dir = args.save_dir or args.weights_path.parent / file_name(args.net_type) / "uncertainty"
    pictures = plots.plot_evaluation(save_dir, report, predictives, images, args.net_type)
    write_json(save_dir / "uncertainty.json", report)
    print(f"\nwritten to {save_dir}: uncertainty.json, {', '.join(picture.name for picture in pictures)}")


def _run_task(
    args: argparse.Namespace,
    networks: dict[str, Classifier | Regressor],
    images: ImageSets,
    task: dict[str, Any],
    world: World,
) -> None:
    """The report of networks for labels, numbers or maps."""
    if args.rotation or args.noise or args.shift is not None:
        raise UserError(f"--rotate, --noise and --shift are for classification, these networks for {task['task']}")
    predictives, report = evaluate_task(
        networks, images, task, num_samples=args.num_samples, seed=args.seed, method=args.prediction, world=world
    )
    if not world.is_main:
        return
    print_task_report(report)
    save_dir = args.save_dir or args.weights_path.parent / file_name(args.net_type) / "uncertainty"
    pictures = plots.plot_task(save_dir, task["task"], predictives, images)
    write_json(save_dir / "uncertainty.json", report)
    print(f"\nwritten to {save_dir}: uncertainty.json, {', '.join(picture.name for picture in pictures)}")


def _load(path: Path, net_type: str, family: str, device: torch.device) -> SavedNetwork:
    saved = load_finite_network(path, device, net_type)
    description = saved.description
    if description.bayesian != (family == "bayesian"):
        raise UserError(
            f"{path} does not hold a {family} network: give --weights_path a checkpoint of main_bayesian.py, "
            f"--frequentist_weights one of main_frequentist.py"
        )
    if description.net_type != net_type:
        raise UserError(
            f"{path} holds a {description.net_type}, not a {net_type}: give --net_type {description.net_type}"
        )
    return saved


def main(flags: Sequence[str] | None = None) -> None:
    """Report by the command line; a user's mistake exits with code 2."""
    with report_user_errors():
        args = parse(sys.argv[1:] if flags is None else flags)
        with process_group(args.device) as world:
            run(args, world)


if __name__ == "__main__":
    main()
