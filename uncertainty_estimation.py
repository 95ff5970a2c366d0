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

from images import CORRUPTIONS, FOR_CHOOSING, KINDS, UNKNOWN
from inference import (
    METHODS,
    SHIFTS,
    Classifier,
    ImageSets,
    evaluate,
    evaluate_task,
    laplace,
    load_for_task,
    load_networks,
    load_test_data,
    load_training_data,
    plots,
    print_report,
    print_task_report,
)
from models import check_net_type, file_name
from support import (
    ALONE,
    OneLineParser,
    UserError,
    World,
    argument,
    named,
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
    add(
        "--net_type",
        type=argument(check_net_type),
        default="lenet",
        help="architecture of the network in --weights_path (%(default)s)",
    )
    add("--weights_path", type=Path, default=weights, help="a checkpoint of main_bayesian.py (%(default)s)")
    add("--frequentist_weights", type=Path, help="one of main_frequentist.py: adds the twin to tables and pictures")
    add("--laplace", action="store_true", help="also Laplace's approximation of the last layer of that twin")
    add("--also", nargs="+", type=argument(named), metavar="NAME=PATH", default=[], help="more networks to compare")
    add("--dataset", default="MNIST", help="the data set whose test split is the known images (%(default)s)")
    add("--data_dir", default="data", help="where downloaded data lies or goes (%(default)s)")
    add("--not_mnist_dir", type=Path, default="data", help="has notMNIST_small, notMNIST_large or A..J (%(default)s)")
    add("--ood_dir", type=Path, help="a folder of other unknown images, instead of notMNIST")
    add("--unknown", nargs="+", metavar="NAME", default=[], help=f"unknown sets: {', '.join(UNKNOWN)}, or folders")
    add("--num_batches", type=count, help="mini-batches of each set, of images chosen at random (default: all)")
    add("--num_samples", type=count, default=25, help="posterior samples (%(default)s)")
    add("--prediction", choices=METHODS, default="draws", help="by posterior samples, or by moments in one pass")
    add("--batch_size", type=count, default=1000, help="images per mini-batch (%(default)s)")
    add("--seed", type=seed, default=0, help="of the samples, and of the choice and order of images (%(default)s)")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps …")
    add("--rotate", dest="rotation", action="store_true", help="also accuracy and uncertainty under rotation to 180°")
    add("--noise", action="store_true", help="also accuracy and uncertainty under noise on the pixels")
    kinds, others = ", ".join(CORRUPTIONS), ", ".join(FOR_CHOOSING)
    add(
        "--shift",
        nargs="*",
        metavar="KIND",
        help=f"also accuracy, NLL, ECE and entropy under corruption: {kinds}; or, if named, {others}",
    )
    add("--save_dir", type=Path, help="where uncertainty.json and the pictures go (uncertainty/ beside the weights)")
    args = parser.parse_args(flags)
    if args.laplace and not args.frequentist_weights:
        parser.error("--laplace is of a trained twin: give --frequentist_weights too")
    if args.laplace and "laplace" in dict(args.also):
        parser.error("--also: there is a network named laplace by --laplace: give another name")
    for kind in args.shift or ():
        if kind not in KINDS:
            parser.error(f"--shift: unknown corruption {kind!r}: did you mean {nearest(kind, KINDS)!r}?")
    return args


def run(args: argparse.Namespace, world: World = ALONE) -> None:
    """Predict, together with the other processes of `world`; the main one prints and writes."""
    tune_cpu()
    device = world.device(args.device)
    twin = [("frequentist", args.frequentist_weights)] if args.frequentist_weights else []
    paths = [("bayesian", args.weights_path), *twin, *args.also]
    saved = load_networks(paths, args.net_type, device)
    task = saved[args.weights_path].description.task
    classifies = task.get("task", "classification") == "classification"
    with world.local_main_first():  # it may download
        data = load_test_data(saved, args.dataset, args.data_dir)
    usual = ["notMNIST"] if classifies else []
    sets = [*args.unknown, str(args.ood_dir.resolve())] if args.ood_dir else args.unknown or usual
    unknown = {name: args.not_mnist_dir if name == "notMNIST" else args.data_dir for name in sets}
    limit = args.num_batches * args.batch_size if args.num_batches else None
    images = ImageSets.read(data, unknown, args.seed, limit)
    if world.is_main and images.notes:
        print(*images.notes, sep="\n")
    how: dict[str, Any] = {"num_samples": args.num_samples, "method": args.prediction, "seed": args.seed}
    save_dir = args.save_dir or args.weights_path.parent / file_name(args.net_type) / "uncertainty"
    pictures: list[Path] = []
    if classifies:
        classifiers = {name: Classifier.from_saved(saved[Path(path)], path) for name, path in paths}
        if args.laplace:
            twin_path = args.frequentist_weights
            training = load_training_data(saved[twin_path], twin_path, args.data_dir)
            classifiers["laplace"] = laplace(classifiers["frequentist"], training.train)
        predictives, report = evaluate(
            classifiers, images, **how, world=world,
            batch_size=args.batch_size, shifts=[name for name in SHIFTS if getattr(args, name)],
            corruptions=() if args.shift is None else args.shift or tuple(CORRUPTIONS),
        )  # fmt: skip
        if world.is_main:
            print_report(report, args.net_type, args.batch_size)
            pictures = plots.plot_evaluation(save_dir, report, predictives, images, args.net_type)
    elif args.rotation or args.noise or args.laplace or args.shift is not None:
        raise UserError(
            f"--rotate, --noise, --shift and --laplace are for classification, these networks for {task['task']}"
        )
    else:
        networks = {name: load_for_task(saved[Path(path)], path) for name, path in paths}
        of_task, report = evaluate_task(networks, images, task, **how, world=world)
        if world.is_main:
            print_task_report(report)
            pictures = plots.plot_task(save_dir, task["task"], of_task, images)
    if world.is_main:
        write_json(save_dir / "uncertainty.json", report)
        print(f"\nwritten to {save_dir}: uncertainty.json, {', '.join(picture.name for picture in pictures)}")


def main(flags: Sequence[str] | None = None) -> None:
    """Report by the command line; a user's mistake exits with code 2."""
    with report_user_errors():
        args = parse(sys.argv[1:] if flags is None else flags)
        with process_group(args.device) as world:
            run(args, world)


if __name__ == "__main__":
    main()
