"""What a network knows and what it does not: scores on known images, known against unknown ones, and under shift."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from images import CORRUPTIONS, SEVERITIES, ImageData, Split, corrupt, gaussian_noise, load_data, load_unknown, rotate
from inference.classifier import Classifier
from inference.decisions import Decisions, decision_scores
from likelihoods import Predictive, metrics, paired_comparison
from models import SavedNetwork, check_settings
from support import ALONE, UserError, World

TRACES = ("epistemic_softmax", "aleatoric_softmax", "epistemic_normalized", "aleatoric_normalized")
Prediction = TypeVar("Prediction")
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
    """Images of the classes that networks know, and sets of images of others.

    Attributes:
        name: of the known images, in tables and pictures.
        known: uint8 [n, channels, height, width].
        labels: [n], the classes of the known images.
        classes: the names of the classes, by label.
        unknown: by name, uint8 [m, channels, height, width].
        skipped: how many images of each set, by its name, were left out because they cannot be read.
        notes: what was made of the sets where they are not what they could be, one line each.
    """

    name: str
    known: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    unknown: Mapping[str, Tensor]
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> dict[str, Any]:
        """What the sets are, in plain values for a report."""
        return {
            "known": self.name,
            "known_images": len(self.known),
            "unknown_images": {name: len(pixels) for name, pixels in self.unknown.items()},
        }

    def predicted(self, predict: Callable[[Tensor], Prediction]) -> dict[str, Prediction]:
        """What `predict` makes of the images of each set, by its name; the known ones come first."""
        return {name: predict(pixels) for name, pixels in {self.name: self.known, **self.unknown}.items()}

    @classmethod
    def read(
        cls, data: ImageData, unknown: Mapping[str, str | Path], seed: int = 0, limit: int | None = None
    ) -> ImageSets:
        """The test split of a data set, and sets of unknown images.

        Args:
            data: the data set.
            unknown: by the name of each set, as for `images.load_unknown`, where it is looked for.
            seed: of the order of the unknown images, and of the choice by `limit`.
            limit: how many images of each set are taken, at random; by default all.

        Raises:
            UserError: as `images.load_unknown`; a test image cannot be read; two sets of the same name.
        """
        name = f"{data.name} test"
        test = data.test.sample(limit or len(data.test), seed)
        known, labels = next(test.batches(len(test)))
        in_memory = [split.images for split in (data.train, data.valid, data.test) if isinstance(split.images, Tensor)]
        sets = [
            load_unknown(each, folder, data.channels, [known, *in_memory], seed, data.image_size, data.center_crop)
            for each, folder in unknown.items()
        ]
        names = [name, *(each.name for each in sets)]
        if len({*names}) < len(names):
            raise UserError(f"two sets of images have the same name ({', '.join(names)}): rename a folder")
        notes = [note for each in sets for note in each.notes]
        if data.skipped:
            notes.insert(0, f"skipped {len(data.skipped):,} unreadable images of {data.name}, as the training of the "
                         f"network did")  # fmt: skip
        skipped = {name: len(data.skipped)} | {each.name: each.skipped for each in sets}
        return cls(name, known, labels, data.classes, {each.name: each.images[:limit] for each in sets}, skipped,
                   tuple(notes))  # fmt: skip


def load_test_data(networks: Mapping[Path, SavedNetwork], dataset: str, data_dir: str | Path) -> ImageData:
    """A data set on whose test split networks are evaluated.

    Args:
        networks: by the paths of their checkpoints. If the training of one of them left out images that cannot be
            read, they are left out here too.
        dataset: as for `images.load_data`.
        data_dir: where downloaded data lies or goes.

    Raises:
        UserError: as `images.load_data`; a network is of other classes than the data, or two networks are for images of
            different sizes or channels, or for different tasks.
    """
    first, *others = networks.items()
    for path, saved in others:
        if _how_read(saved) != _how_read(first[1]):
            raise UserError(f"{path} and {first[0]} are for other images or tasks: evaluate them one by one")
    skip_broken = any(saved.skips_broken for saved in networks.values())
    # Any validation split and seed give this test split.
    data = load_data(dataset, data_dir, valid_size=0.1, seed=0, skip_broken=skip_broken, **_how_read(first[1]))
    for path, saved in networks.items():
        classes = saved.description.classes
        if classes != data.classes:
            raise UserError(
                f"{path} is for other classes ({len(classes)}) than {data.name} ({len(data.classes)}): give the "
                f"dataset that it was trained on"
            )
    return data


def _how_read(saved: SavedNetwork) -> dict[str, Any]:
    """The arguments of `load_data` by which images become what a network takes."""
    description = saved.description
    return {
        "image_size": description.image_size,
        "center_crop": description.center_crop,
        "channels": len(description.mean),
        "task": description.task.get("task", "classification"),
    }


def require_classification(saved: SavedNetwork, path: str | Path) -> None:
    """Refuse a network of another task than one class per image.

    Raises:
        UserError: its task is another one.
    """
    task = saved.description.task.get("task", "classification")
    if task != "classification":
        kind = "Regressor" if task == "regression" else "Classifier"
        raise UserError(
            f"{path} is for the task {task}: give a network for classification, or predict by inference.{kind}"
        )


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
        settings["dataset"],
        data_dir,
        settings["valid_size"],
        settings["seed"],
        skip_broken=saved.skips_broken,
        **_how_read(saved),
    )
    known = saved.content.get("data", data.fingerprint) == data.fingerprint
    if settings.get("prior_from") is None:  # a run that continues another one keeps its normalization
        known = known and data.mean == saved.description.mean
    if not known or data.classes != saved.description.classes:
        raise UserError(f"{path} was trained on other {data.name} images than those here: restore its data")
    return data


def split_scores(classifier: Classifier, split: Split, num_samples: int = 25, seed: int = 0) -> dict[str, float]:
    """Accuracy, NLL (nats per example), Brier score and ECE of a classifier on labelled images."""
    return metrics.scores(classifier.predict(split.images, num_samples, seed), split.labels)


def known_scores(predictive: Predictive, labels: Tensor) -> dict[str, float]:
    """`metrics.scores`, the calibrated and the adaptive ECE, and `metrics.selective_scores` of the total entropy."""
    probs = predictive.probs
    more = {"calibrated_ece": metrics.calibrated_ece(probs), "adaptive_ece": metrics.adaptive_ece(probs, labels)}
    selective = metrics.selective_scores(predictive.entropy, predictive.labels != labels)
    return metrics.scores(predictive, labels) | more | selective


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
    predict: Callable[[Tensor], Predictive],
    images: Tensor,
    labels: Tensor,
    shift: Shift,
    decisions: Decisions | None = None,
) -> list[dict[str, float]]:
    """Scores and mean uncertainty at every severity of a shift.

    Args:
        predict: from uint8 images to their predictive, such as `Classifier.predict`.
        images: uint8 [n, channels, height, width].
        labels: [n].
        shift: one of `SHIFTS`, or another.
        decisions: of the classifier that predicts, whose `decision_scores` are added.

    Returns:
        One row per severity; NLL, entropies and mutual information in nats, `epistemic` and `aleatoric` the traces of
        the covariances by softmax, `confidence` the mean of the largest probability.
    """
    rows = []
    for severity in shift.severities:
        predictive = predict(shift.corrupt(images, severity))
        rows.append(
            {
                "shift": severity,
                "accuracy": metrics.accuracy(predictive.probs, labels),
                "confidence": predictive.probs.amax(1).mean().item(),
                "nll": metrics.nll(predictive, labels),
                "ece": metrics.ece(predictive.probs, labels),
                "entropy": predictive.entropy.mean().item(),
                "mutual_information": predictive.mutual_information.mean().item(),
                "epistemic": predictive.epistemic_softmax.mean().item(),
                "aleatoric": predictive.aleatoric_softmax.mean().item(),
                **({} if decisions is None else decision_scores(decisions, predictive, labels)),
            }
        )
    return rows


def under_corruptions(
    predict: Callable[[Tensor], Predictive],
    images: Tensor,
    labels: Tensor,
    kinds: Iterable[str] = tuple(CORRUPTIONS),
    seed: int = 0,
    decisions: Decisions | None = None,
) -> dict[str, list[dict[str, float]]]:
    """For each kind of corruption, the rows of `under_shift` at the severities 0 to 5.

    Args:
        predict: as for `under_shift`.
        images: uint8 [n, channels, height, width].
        labels: [n].
        kinds: of corruption, as for `images.corrupt`.
        seed: of the corruptions.
        decisions: as for `under_shift`.
    """

    def rows(kind: str, severities: Sequence[float]) -> list[dict[str, float]]:
        shift = Shift(severities, lambda images, severity: corrupt(images, kind, int(severity), seed), "severity")
        return under_shift(predict, images, labels, shift, decisions)

    kinds = tuple(kinds)
    clean = rows(kinds[0], SEVERITIES[:1])  # the same for all
    return {kind: clean + rows(kind, SEVERITIES[1:]) for kind in kinds}


def is_honest(rows: Sequence[Mapping[str, float]], count: int) -> bool | None:
    """Whether a network is less certain of images wherever it is more often wrong about them.

    Args:
        rows: of `under_shift`.
        count: how many images they are about.

    Returns:
        Whether, for every two severities whose errors differ by more than two standard errors, the mean entropy is
        higher where the error is. None if there are no such two: the shift does no harm that could be seen.
    """
    rises = []
    for less, more in permutations(rows, 2):
        variance = sum(row["accuracy"] * (1 - row["accuracy"]) / count for row in (less, more))
        if less["accuracy"] - more["accuracy"] > 2 * math.sqrt(variance):
            rises.append(more["entropy"] > less["entropy"])
    return all(rises) if rises else None


def shift_summary(corruptions: Mapping[str, Sequence[Mapping[str, float]]], count: int) -> dict[str, Any]:
    """How honest a network is under corruption.

    Args:
        corruptions: of `under_corruptions`.
        count: how many images they are about.

    Returns:
        harmful: the kinds of corruption under which its error rises, as for `is_honest`.
        honest: those of them under which its mean entropy rises with it.
        overconfidence: by kind, how far its mean confidence exceeds its accuracy at the highest severity.
        mean: accuracy, NLL, ECE and entropy, averaged over the kinds and over the severities 3 to 5.
    """
    verdicts = {kind: is_honest(rows, count) for kind, rows in corruptions.items()}
    severe = [row for rows in corruptions.values() for row in rows if row["shift"] >= 3]
    return {
        "harmful": [kind for kind, honest in verdicts.items() if honest is not None],
        "honest": [kind for kind, honest in verdicts.items() if honest],
        "overconfidence": {kind: rows[-1]["confidence"] - rows[-1]["accuracy"] for kind, rows in corruptions.items()},
        "mean": {
            name: sum(row[name] for row in severe) / len(severe) for name in ("accuracy", "nll", "ece", "entropy")
        },
    }


def evaluate(
    classifiers: Mapping[str, Classifier],
    images: ImageSets,
    *,
    num_samples: int = 25,
    seed: int = 0,
    method: str = "draws",
    batch_size: int = 1000,
    shifts: Iterable[str] = (),
    corruptions: Sequence[str] = (),
    world: World = ALONE,
) -> tuple[dict[str, dict[str, Predictive]], dict[str, Any]]:
    """All scores of some networks on known and on unknown images.

    Args:
        classifiers: the networks, by name.
        images: known and unknown.
        num_samples: draws from each posterior.
        seed: of the draws, and of corruptions.
        method: 'draws', or 'moments' for a single pass without draws.
        batch_size: images per mini-batch of the report's `batches`.
        shifts: which of `SHIFTS` 2,000 known images undergo, drawn by the seed.
        corruptions: which kinds of corruption they undergo, as for `images.corrupt`.
        world: the processes that predict together.

    Returns:
        By network, the predictives of the known images and of each unknown set, by name; and the report, of plain
        values: what was evaluated, for each of `networks` its `batches` (`batch_means` of all sets), `known`
        (`known_scores`), `novelty` (`novelties` of each unknown set), `decisions` (of a network that has them: their
        `decision_scores` for all sets) and `shift` (`shift_summary`), for each shift and network the rows of
        `under_shift`, in `corruptions`, for each network, those of `under_corruptions`, and in `gains`, by the name of
        every network but the first, the `paired_comparison` of the first one with it on the known images.
    """
    predictors = {
        network: partial(classifier.predict, num_samples=num_samples, seed=seed, method=method, world=world)
        for network, classifier in classifiers.items()
    }
    started = time.perf_counter()
    predictives = {network: images.predicted(predict) for network, predict in predictors.items()}
    seconds = time.perf_counter() - started
    report: dict[str, Any] = {
        **images.description,
        "prediction": method,
        "samples": num_samples,
        "seed": seed,
        "prediction_seconds": round(seconds, 2),
        "networks": {
            network: {
                "batches": {name: batch_means(predictive, batch_size) for name, predictive in sets.items()},
                "known": known_scores(sets[images.name], images.labels),
                "novelty": {name: novelties(sets[images.name], sets[name]) for name in images.unknown},
                **_decided(classifiers[network].decisions, sets, images),
            }
            for network, sets in predictives.items()
        },
    }
    first, *others = predictives
    report["gains"] = {
        other: paired_comparison(predictives[first][images.name], predictives[other][images.name], images.labels)
        for other in others
    }
    order = torch.randperm(len(images.known), generator=torch.Generator().manual_seed(seed))[:SHIFTED].sort().values
    known, labels = images.known[order], images.labels[order]  # a folder's images are in the order of their classes
    for name in shifts:
        report[name] = {
            network: under_shift(predict, known, labels, SHIFTS[name]) for network, predict in predictors.items()
        }
    if corruptions:
        report["corruptions"] = {
            network: under_corruptions(predict, known, labels, corruptions, seed, classifiers[network].decisions)
            for network, predict in predictors.items()
        }
        for network, rows in report["corruptions"].items():
            report["networks"][network]["shift"] = shift_summary(rows, len(known))
    return predictives, report | {"skipped": dict(images.skipped)}


def _decided(decisions: Decisions | None, sets: Mapping[str, Predictive], images: ImageSets) -> dict[str, Any]:
    if decisions is None:
        return {}
    scores = {
        name: decision_scores(decisions, predictive, images.labels if name == images.name else None)
        for name, predictive in sets.items()
    }
    return {"decisions": asdict(decisions) | {"scores": scores}}
