"""Compare prediction by moments with prediction by draws of one trained network, and add the figures to a record.

The reference is the mean of 400 draws. Total variation to it, on known and on unknown images, by 25, 50 and 100 further
draws, by moments, and by moments that are fitted to 50 draws on 64 validation images; NLL, ECE and AUROC by the
reference and by both kinds of moments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import table
from images import read_images
from inference import Classifier, Predictor, load_finite_network, novelties, summarize
from inference.evaluation import load_training_data, require_classification
from inference.prediction import posterior_outputs
from likelihoods import Predictive, scores
from support import OneLineParser, argument, report_user_errors, tune_cpu, whole, write_json

RECORD = Path(__file__).parent / "moments.json"
REFERENCE, RIVALS = 400, (25, 50, 100)
FIT_IMAGES, FIT_DRAWS = 64, 50
TRAINING = ("layer_type", "beta_type", "temperature", "optimizer", "n_epochs", "lr_start", "seed")
SCORES = ("total entropy", "mutual information")


def total_variation(probs: Tensor, others: Tensor) -> float:
    """Mean over images of half the sum of absolute differences between class probabilities."""
    return 0.5 * float((probs - others).abs().sum(-1).mean())


def compare(
    classifier: Classifier, images: Tensor, predictors: Mapping[str, Predictor]
) -> tuple[dict[str, float], dict[str, Predictive]]:
    """Total variations to the reference, and the predictives by the reference ('draws') and by the predictors.

    Args:
        classifier: of a Bayesian network.
        images: uint8 [n, channels, height, width].
        predictors: by moments, by name.
    """
    inputs = classifier.normalize(images)
    with torch.no_grad():
        outputs = torch.stack(list(posterior_outputs(classifier.net, inputs, REFERENCE + max(RIVALS), 256, 0)))
    predictives = {"draws": summarize(outputs[:REFERENCE])}
    predictives |= {name: predictor(inputs) for name, predictor in predictors.items()}
    reference = predictives["draws"].probs
    rows = {
        f"{count} draws": total_variation(summarize(outputs[REFERENCE : REFERENCE + count]).probs, reference)
        for count in RIVALS
    }
    return rows | {name: total_variation(predictives[name].probs, reference) for name in predictors}, predictives


def measure(path: Path, unknown_dir: Path, count: int, data_dir: str, net_type: str | None = None) -> dict[str, Any]:
    """The figures of the network in a checkpoint, on `count` test images and as many of a folder of unknown ones."""
    saved = load_finite_network(path, net_type=net_type)
    require_classification(saved, path)
    classifier = Classifier.from_description(saved.net, saved.description)
    data = load_training_data(saved, path, data_dir)
    generator = torch.Generator().manual_seed(0)
    known, labels = next(data.test.batches(count, torch.randperm(len(data.test), generator=generator)[:count]))
    unknown, _ = read_images(unknown_dir, data.channels)
    unknown = unknown[torch.randperm(len(unknown), generator=generator)[:count]]
    of_fit, _ = next(data.valid.batches(FIT_IMAGES, torch.randperm(len(data.valid), generator=generator)[:FIT_IMAGES]))
    predictors = {
        "moments": Predictor(classifier.net, method="moments"),
        "fitted": Predictor(classifier.net, FIT_DRAWS, seed=1, method="moments", fit_to=classifier.normalize(of_fit)),
    }
    known_rows, known_predictives = compare(classifier, known, predictors)
    unknown_rows, unknown_predictives = compare(classifier, unknown, predictors)
    settings = saved.content["settings"]
    tempered = f", T = {settings['temperature']:g}" if settings["temperature"] != 1 else ""
    return {
        "network": f"{settings['net_type'].rpartition(':')[2]} on {data.name}{tempered}",
        "training": {name: settings[name] for name in TRAINING},
        "unknown": unknown_dir.name,
        "images": count,
        "total_variation": {"known": known_rows, "unknown": unknown_rows},
        "scores": {
            method: scores(predictive, labels)
            | {
                f"auroc by {name}": row["auroc"]
                for name, row in novelties(predictive, unknown_predictives[method], SCORES).items()
            }
            for method, predictive in known_predictives.items()
        },
    }


def render(record: dict[str, Any]) -> str:
    """The record as Markdown tables: the total variations, and the scores."""
    distances = [
        [network, row["unknown"], str(row["images"]), *(f"{value:.4f}" for values in row["total_variation"].values()
         for value in values.values())]
        for network, row in record.items()
    ]  # fmt: skip
    figures = [
        [network, method, *(f"{value:.4f}" for name, value in row["scores"][method].items() if name != "brier")]
        for network, row in record.items()
        for method in row["scores"]
    ]
    ways = next(iter(record.values()))["total_variation"]["known"]
    header = [
        "network",
        "unknown images",
        "of each",
        *(f"{images}: {way}" for images in ("known", "unknown") for way in ways),
    ]
    scores_header = ["network", "prediction", "accuracy", "NLL", "ECE", *(f"AUROC by {name}" for name in SCORES)]
    return f"{table(header, distances)}\n{table(scores_header, figures)}"


def main() -> None:
    """Measure the network that the command line names; a user's mistake exits with code 2."""
    parser = OneLineParser(
        "python -m experiments.moments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights_path", type=Path, required=True, help="a checkpoint of main_bayesian.py")
    add("--unknown", type=Path, required=True, help="a folder of unknown images")
    add("--net_type", help="package.module:factory, if the network is of a factory")
    add("--images", type=argument(whole(1)), default=1000, help="of each of both (%(default)s)")
    add("--data_dir", default="data", help="where the training data lies (%(default)s)")
    with report_user_errors():
        args = parser.parse_args()
        tune_cpu()
        result = measure(args.weights_path, args.unknown, args.images, args.data_dir, args.net_type)
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        record |= {result["network"]: result}
        write_json(RECORD, record)
        print(render(record))


if __name__ == "__main__":
    main()
