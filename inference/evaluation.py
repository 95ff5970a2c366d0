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

from images import ImageData, Split, gaussian_noise, load_data, read_images, rotate
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


@dataclass(frozen=True, eq=False)
class ImageSets:
    """Images of the classes that networks know, and images of others.

    Attributes:
        names: of the two sets, in tables and pictures.
        known: uint8 [n, channels, height, width].
        labels: [n], the classes of the known images.
        classes: the names of the classes, by label.
        unknown: uint8 [m, channels, height, width].
        skipped: how many images of each set were left out because they cannot be read.
        notes: which those are, one line per set that has such.
    """

    names: tuple[str, str]
    known: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    unknown: Tensor
    skipped: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, data: ImageData, folder: Path, seed: int = 0, limit: int | None = None) -> ImageSets:
        """The test split of a data set, and the images anywhere below a folder.

        Args:
            data: the data set.
            folder: of the unknown images.
            seed: of the order of the unknown images.
            limit: how many images of each set are taken, the first ones; by default all.

        Raises:
            UserError: there is no such folder, or no readable image in it; a test image cannot be read.
        """
        unknown, skipped = read_images(folder, data.channels)
        order = torch.randperm(len(unknown), generator=torch.Generator().manual_seed(seed))[:limit]
        known, labels = next(data.test.batches(limit or len(data.test)))
        names, counts = (f"{data.name} test", folder.resolve().name), (len(data.skipped), len(skipped))
        notes = []
        if data.skipped:
            notes.append(f"skipped {counts[0]:,} unreadable images of {data.name}, as the training of the network did")
        if skipped:
            total = len(skipped) + len(unknown)
            notes.append(f"skipped {len(skipped)} unreadable of {total} images, the first {skipped[0]}")
        return cls(names, known, labels, data.classes, unknown[order], counts, tuple(notes))


def load_test_data(networks: Mapping[Path, SavedNetwork], dataset: str, data_dir: str | Path) -> ImageData:
    """A data set on whose test split networks are evaluated.

    Args:
        networks: by the paths of their checkpoints. If the training of one of them left out images that cannot be
            read, they are left out here too.
        dataset: as for `images.load_data`.
        data_dir: where downloaded data lies or goes.

    Raises:
        UserError: as `images.load_data`; a network is of other classes or channels than the data.
    """
    skip_broken = any(saved.skips_broken for saved in networks.values())
    data = load_data(dataset, data_dir, valid_size=0.1, seed=0, skip_broken=skip_broken)  # any give this test split
    for path, saved in networks.items():
        classes, channels = saved.description.classes, len(saved.description.mean)
        if (classes, channels) != (data.classes, data.channels):
            raise UserError(
                f"{path} is for {len(classes)} classes of {channels}-channel images, {data.name} has "
                f"{len(data.classes)} of {data.channels}: give the dataset that it was trained on"
            )
    return data


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
    data = load_data(
        settings["dataset"], data_dir, settings["valid_size"], settings["seed"], skip_broken=saved.skips_broken
    )
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
    images: ImageSets,
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
        images: known and unknown.
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
    predictives = {network: (predict(images.known), predict(images.unknown)) for network, predict in predictors.items()}
    seconds = time.perf_counter() - started
    report = {
        "known": images.names[0],
        "unknown": images.names[1],
        "known_images": len(images.known),
        "unknown_images": len(images.unknown),
        "prediction": method,
        "samples": num_samples,
        "seed": seed,
        "prediction_seconds": round(seconds, 2),
        "networks": {
            network: {
                "batches": {name: batch_means(p, batch_size) for name, p in zip(images.names, sets, strict=True)},
                "known": known_scores(sets[0], images.labels),
                "novelty": novelties(*sets),
            }
            for network, sets in predictives.items()
        },
    }
    for name in shifts:
        report[name] = {
            network: under_shift(predict, images.known[:SHIFTED], images.labels[:SHIFTED], SHIFTS[name])
            for network, predict in predictors.items()
        }
    report |= {"skipped": images.skipped[1], "skipped_known": images.skipped[0]}
    return predictives, report
