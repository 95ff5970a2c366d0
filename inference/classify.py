"""Classify images: the most probable class of each, its probability, its uncertainty, and whether the network is sure.

Of a folder, every image is taken, also those in its subfolders. A prediction is marked "unsure" if its uncertainty is
above the threshold that `python -m inference.calibrate` chose; a checkpoint without one has no such mark.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from support import exit_on_interrupt

    exit_on_interrupt()

from images import image_paths
from inference.classifier import Classifier, load_finite_network
from inference.evaluation import require_classification
from inference.prediction import METHODS
from likelihoods import SCORES
from support import ALONE, OneLineParser, UserError, argument, one_line, report_user_errors, tune_cpu, whole


def parse(flags: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = OneLineParser("python -m inference.classify", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("weights_path", type=Path, metavar="model.pt", help="a checkpoint of main_bayesian.py or main_frequentist.py")
    add("images", type=Path, nargs="+", metavar="image", help="image files, and folders of them")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print a JSON list of one object per image")
    formats.add_argument("--csv", action="store_true", help="print comma-separated values, one line per image")
    add("--uncalibrated", action="store_true", help="without the temperature and the threshold in the checkpoint")
    add("--num_samples", type=argument(whole(1)), default=25, help="posterior samples (%(default)s)")
    add("--prediction", choices=METHODS, default="draws", help="by posterior samples, or by moments in one pass")
    add("--seed", type=argument(whole(0)), default=0, help="of the samples (%(default)s)")
    add("--net_type", help="package.module:factory, if the network is your own")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps …")
    return parser.parse_args(flags)


def classify(classifier: Classifier, paths: Sequence[str], **settings: Any) -> list[dict[str, Any]]:
    """What a classifier says about image files.

    Args:
        classifier: with or without decisions.
        paths: of the files.
        settings: keyword arguments of `Classifier.predict`.

    Returns:
        Per image: its `path`; the most probable `class` and its `probability`; the `uncertainty`, by the score of the
        classifier's decisions or total entropy (nats); whether the network is `unsure`, and the `set` of classes of
        which one is the right one with the probability that was asked for, both None without decisions.

    Raises:
        UserError: an image cannot be read.
    """
    predictive = classifier.predict(paths, **settings)
    decisions = classifier.decisions
    uncertainty = SCORES["total entropy" if decisions is None else decisions.score](predictive)
    sets = None if decisions is None else decisions.sets(predictive).tolist()
    return [
        {
            "path": path,
            "class": classifier.classes[label],
            "probability": predictive.probs[index, label].item(),
            "uncertainty": uncertainty[index].item(),
            "unsure": None if sets is None else not predictive.accepted[index].item(),
            "set": None if sets is None else _names(classifier.classes, sets[index]),
        }
        for index, (path, label) in enumerate(zip(paths, predictive.labels.tolist(), strict=True))
    ]


def _names(classes: Sequence[str], members: Sequence[bool]) -> list[str]:
    return [name for name, member in zip(classes, members, strict=True) if member]


def _files(paths: Sequence[Path]) -> Iterator[str]:
    """The paths of images, with those in a folder in its place."""
    for path in paths:
        if path.is_dir():
            files = image_paths(path)
            if not files:
                raise UserError(f"{path} holds no image")
            yield from files
        else:
            yield str(path)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Classify the images and print the answers."""
    tune_cpu()
    calibrated = not args.uncalibrated
    device = ALONE.device(args.device)
    saved = load_finite_network(args.weights_path, device, args.net_type)
    require_classification(saved, args.weights_path)
    classifier = Classifier.from_saved(saved, args.weights_path, calibrated=calibrated)
    settings = {"num_samples": args.num_samples, "seed": args.seed, "method": args.prediction}
    rows = classify(classifier, list(_files(args.images)), **settings)
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"set": " ".join(row["set"] or ())} for row in rows)
    else:
        width, longest = (max(len(one_line(row[key])) for row in rows) for key in ("path", "class"))
        for row in rows:
            print(f"{one_line(row['path']):<{width}}  {one_line(row['class']):<{longest}}  {row['probability']:.4f}  "
                  f"{row['uncertainty']:.4f}{'  unsure' if row['unsure'] else ''}")  # fmt: skip
    if calibrated and classifier.decisions is None:
        print(f"{args.weights_path} has no threshold, so no answer is marked as unsure: choose one by "
              f"python -m inference.calibrate {args.weights_path}", file=sys.stderr)  # fmt: skip
    return rows


def main(flags: Sequence[str] | None = None) -> None:
    """Classify by the command line; a user's mistake exits with code 2."""
    with report_user_errors():
        run(parse(sys.argv[1:] if flags is None else flags))


if __name__ == "__main__":
    main()
