"""What a network knows and what it does not: scores on known images, known against unknown ones, and under shift."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from images import ImageData, Split, gaussian_noise, load_data, rotate
from inference import metrics
from inference.classifier import Classifier
from inference.likelihoods import Predictive
from models import SavedNetwork, check_settings
from support import ALONE, UserError, World

TRACES = ("epistemic_softmax", "aleatoric_softmax", "epistemic_normalized", "aleatoric_normalized")
SHIFTED = 2000  # images that a shift is applied to, at most


@dataclass(frozen=True)
class Shift:
    """A way to move images away from the training data.

    Attributes:
        severities: how far, from not at all.
        corrupt: from uint8 images and a severity to shifted images.
        label: what a picture's axis calls the severity.
    """

    severities: Sequence[float]
    corrupt: Callable[[Tensor, float], Tensor]
    label: str


def _add_noise(images: Tensor, std: float) -> Tensor:
    """The same noise in every call, but for its scale."""
    return gaussian_noise(images, std, torch.Generator().manual_seed(0))


SHIFTS: Mapping[str, Shift] = {
    "rotation": Shift(range(0, 181, 15), rotate, "rotation (degrees)"),
    "noise": Shift([level / 10 for level in range(11)], _add_noise, "standard deviation of the noise"),
}


def load_training_data(saved: SavedNetwork, path: str | Path, data_dir: str) -> ImageData:
    """The data that a network was trained on, split as it was then.

    Args:
        saved: the network and its checkpoint's content.
        path: of the checkpoint, for messages.
        data_dir: where downloaded data lies or goes.

    Raises:
        UserError: the checkpoint does not name its data, they cannot be read, or they are no longer the same.
    """
    check_settings(saved.content, path)
    settings = saved.content["settings"]
    skip_broken = bool(settings.get("skip_broken", False))
    data = load_data(settings["dataset"], data_dir, settings["valid_size"], settings["seed"], skip_broken=skip_broken)
    if (data.mean, data.classes) != (saved.description.mean, saved.description.classes):
        raise UserError(f"{path} was trained on other {data.name} images than those here: restore its data")
    return data


def split_scores(classifier: Classifier, split: Split, num_samples: int = 25, seed: int = 0) -> dict[str, float]:
    """Accuracy, NLL (nats per example), Brier score and ECE of a classifier on labelled images."""
    return metrics.scores(classifier.predict(split.images, num_samples, seed), split.labels)


def known_scores(predictive: Predictive, labels: Tensor) -> dict[str, float]:
    """`metrics.scores`, the adaptive ECE, and the area under the risk–coverage curve of the total entropy."""
    return metrics.scores(predictive, labels) | {
        "adaptive_ece": metrics.adaptive_ece(predictive.probs, labels),
        "risk_coverage_area": metrics.risk_coverage_area(predictive.entropy, predictive.labels != labels),
    }


def novelties(
    known: Predictive, unknown: Predictive, scores: Iterable[str] = tuple(metrics.SCORES)
) -> dict[str, dict[str, float]]:
    """How well each of the named `metrics.SCORES` tells unknown images from known ones, as `metrics.novelty`."""
    return {name: metrics.novelty(metrics.SCORES[name](known), metrics.SCORES[name](unknown)) for name in scores}


def batch_means(predictive: Predictive, batch_size: int) -> list[dict[str, float]]:
    """The mean of every uncertainty trace in each mini-batch of images, in their order."""
    columns = [getattr(predictive, name).split(batch_size) for name in TRACES]
    return [
        dict(zip(TRACES, (batch.mean().item() for batch in batches), strict=True))
        for batches in zip(*columns, strict=True)
    ]


def under_shift(
    predict: Callable[[Tensor], Predictive], images: Tensor, labels: Tensor, shift: Shift
) -> list[dict[str, float]]:
    """Accuracy and mean uncertainty at every severity of a shift.

    Args:
        predict: from uint8 images to their predictive, such as `Classifier.predict`.
        images: uint8 [n, channels, height, width].
        labels: [n].
        shift: one of `SHIFTS`, or another.

    Returns:
        One row per severity; entropies and mutual information in nats, `epistemic` and `aleatoric` the traces of the
        covariances by softmax.
    """
    rows = []
    for severity in shift.severities:
        predictive = predict(shift.corrupt(images, severity))
        rows.append(
            {
                "shift": severity,
                "accuracy": metrics.accuracy(predictive.probs, labels),
                "entropy": predictive.entropy.mean().item(),
                "mutual_information": predictive.mutual_information.mean().item(),
                "epistemic": predictive.epistemic_softmax.mean().item(),
                "aleatoric": predictive.aleatoric_softmax.mean().item(),
            }
        )
    return rows


def evaluate(
    classifiers: Mapping[str, Classifier],
    known: Tensor,
    labels: Tensor,
    unknown: Tensor,
    names: tuple[str, str],
    *,
    num_samples: int = 25,
    seed: int = 0,
    method: str = "draws",
    batch_size: int = 1000,
    shifts: Iterable[str] = (),
    world: World = ALONE,
) -> tuple[dict[str, tuple[Predictive, Predictive]], dict[str, Any]]:
    """All scores of some networks on known and on unknown images.

    Args:
        classifiers: the networks, by name.
        known: images of the classes that the networks know, uint8 [n, channels, height, width].
        labels: [n], their classes.
        unknown: images of other classes, uint8 [m, channels, height, width].
        names: of the two sets of images.
        num_samples: draws from each posterior.
        seed: of the draws.
        method: 'draws', or 'moments' for a single pass without draws.
        batch_size: images per mini-batch of the report's `batches`.
        shifts: which of `SHIFTS` the first 2,000 known images undergo.
        world: the processes that predict together.

    Returns:
        By network, the predictives of the known and of the unknown images; and the report, of plain values: what was
        evaluated, for each of `networks` its `batches` (`batch_means` of both sets), `known` (`known_scores`) and
        `novelty` (`novelties`), and for each shift and network the rows of `under_shift`.
    """
    predictors = {
        network: partial(classifier.predict, num_samples=num_samples, seed=seed, method=method, world=world)
        for network, classifier in classifiers.items()
    }
    started = time.perf_counter()
    predictives = {network: (predict(known), predict(unknown)) for network, predict in predictors.items()}
    seconds = time.perf_counter() - started
    report = {
        "known": names[0],
        "unknown": names[1],
        "known_images": len(known),
        "unknown_images": len(unknown),
        "prediction": method,
        "samples": num_samples,
        "seed": seed,
        "prediction_seconds": round(seconds, 2),
        "networks": {
            network: {
                "batches": {name: batch_means(each, batch_size) for name, each in zip(names, sets, strict=True)},
                "known": known_scores(sets[0], labels),
                "novelty": novelties(*sets),
            }
            for network, sets in predictives.items()
        },
    }
    for name in shifts:
        report[name] = {
            network: under_shift(predict, known[:SHIFTED], labels[:SHIFTED], SHIFTS[name])
            for network, predict in predictors.items()
        }
    return predictives, report
