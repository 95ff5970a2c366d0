"""A data set split for a run: training, validation and test images, and the constants that normalize them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from images.folders import folder_source, shortened
from images.sources import SOURCES, Source
from images.splits import Split, held_out_count
from images.targets import target_counts, target_source
from images.transforms import chunk_size, to_channels
from models import IMAGE_SIZE, Size, check_image_size
from support import UserError, nearest, one_line

TEST_FRACTION = 0.2  # of a data set that comes without a test split
TEST_SEED = 0  # not the run's seed: every run is tested on the same images
FINGERPRINT_IMAGES = 64  # of each split, whose pixels are part of the fingerprint where images come from no files


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set, split, with the constants that normalize it.

    Attributes:
        name: what checkpoints and reports call it.
        classes: the names of the classes, by label; or those of the labels or targets of another task.
        flippable: whether mirror images are as good as the originals.
        train: the images to train on.
        valid: the images held out to choose the best epoch and the settings by.
        test: the images that are looked at once, at the end.
        mean: per channel, of the training split's pixels in [0, 1].
        std: their standard deviation, per channel.
        fingerprint: SHA-256, in hexadecimal, of the names of the classes, the numbers of images, and what the images
            are: the relative paths and sizes of a folder's files; else all labels and the pixels of a fixed sample.
            Two runs on the same data have the same fingerprint, whether or not the images fit in memory.
        notes: what was made of the data where it is not what it could be, one line each.
        skipped: the paths of images that were left out because they cannot be read.
        center_crop: whether the center of images of another shape was cut out.
        task: what is to be predicted: classification, multilabel, regression or segmentation.
    """

    name: str
    classes: tuple[str, ...]
    flippable: bool
    train: Split
    valid: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    center_crop: bool = False
    task: str = "classification"

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by their names: 'train', 'valid', 'test'."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """By split, the number of images of each class; of other tasks, `target_counts`."""
        if self.task != "classification":
            return {name: target_counts(self.task, self.classes, split.labels) for name, split in self.splits.items()}
        return {
            name: dict(zip(self.classes, split.labels.bincount(minlength=len(self.classes)).tolist(), strict=True))
            for name, split in self.splits.items()
        }

    def report(self) -> str:
        """The numbers of images by split and class, what was made of the data, and what was skipped: a line each."""
        if self.task == "classification":
            counts = ", ".join(f"{split} {_count_phrase(by_class)}" for split, by_class in self.counts.items())
        else:
            phrases = {name: _target_phrase(self.task, by_name) for name, by_name in self.counts.items()}
            counts = ", ".join(f"{name} {len(split):,} ({phrases[name]})" for name, split in self.splits.items())
        color = "grey" if self.channels == 1 else "color"
        size = "" if self.image_size == IMAGE_SIZE else " {}×{}".format(*self.image_size)
        noun = {"multilabel": "labels", "regression": "targets"}.get(self.task, "classes")
        noun = noun.removesuffix("s") if len(self.classes) == 1 else noun
        lines = [f"{self.name}: {len(self.classes)} {noun}, {color}{size}; {counts}", *self.notes]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped):,} unreadable images, the first {self.skipped[0]}")
        return "\n".join(map(one_line, lines))

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return len(self.mean)

    @property
    def image_size(self) -> Size:
        """Height and width of the images."""
        return self.train.image_size


def load_data(
    dataset: str,
    data_dir: str | Path,
    valid_size: float,
    seed: int,
    memory_limit: float | None = None,
    batch_size: int = 1,
    skip_broken: bool = False,
    *,
    image_size: int | Size | str | None = None,
    center_crop: bool = False,
    channels: int | str = "auto",
    task: str = "classification",
) -> ImageData:
    """A data set by its name, or the path of a folder of images, split for a run.

    Args:
        dataset: a key of `images.SOURCES` ('MNIST5k', 'MNIST', 'CIFAR10', …), or a folder with
            `train/<class>/*` and, if it has them, `val/<class>/*` and `test/<class>/*`: see `folder_source`.
        data_dir: where downloads are kept.
        valid_size: the fraction of the training images that is held out for validation, if the data set has no
            validation images of its own.
        seed: of the split into training and validation.
        memory_limit: for a folder, bytes of images to hold in memory at most; by default half of the free memory.
        batch_size: the run's, which the training images must at least fill.
        skip_broken: for a folder, leave out the images that cannot be read.
        image_size: height and width of the images, or one number for both. None for the data set's own, which is 32×32
            for a folder; 'own' for a folder whose images all have one size.
        center_crop: for a folder, as for `to_pixels`; the images of the data sets by name are square.
        channels: 1 to read the images as grey, 3 as RGB, 'auto' as they are.
        task: classification; or multilabel, regression or segmentation for a folder as `target_source` reads it.

    Raises:
        UserError: an impossible size or number of channels, an unknown name, a size that is for folders alone, splits
            without images or smaller than a batch (all before any image is read), data that is not there and cannot be
            downloaded, a broken folder, or, in any split, a broken file.
    """
    size = _checked_size(image_size)
    if channels not in (1, 3, "auto"):
        raise UserError(f"channels: expected 1, 3 or 'auto', got {channels!r}")
    source = _find_source(
        dataset,
        task,
        memory_limit=memory_limit,
        skip_broken=skip_broken,
        channels=None if isinstance(channels, str) else channels,
        image_size=size,
        center_crop=center_crop,
    )
    count = source.train_images
    count -= 0 if source.has_test else held_out_count(count, TEST_FRACTION, "test")
    count -= 0 if source.has_valid else held_out_count(count, valid_size, "validation")
    if batch_size > count:
        raise UserError(f"batch_size {batch_size} is more than the {count} training images: give at most that")
    contents = source.read(Path(data_dir), size if isinstance(size, tuple) else source.size)
    train, valid, test = contents.train, contents.valid, contents.test
    if test is None:
        train, test = train.hold_out(TEST_FRACTION, TEST_SEED, "test")
    if valid is None:
        train, valid = train.hold_out(valid_size, seed, "validation")
    if isinstance(channels, int):
        train, valid, test = (_with_channels(split, channels) for split in (train, valid, test))
    mean, std = _pixel_statistics(train)
    for split in (valid, test):
        _decode_all(split)
    content = contents.files_digest or _pixels_digest((train, valid, test))
    counts: list[Any] = [len(split) for split in (train, valid, test)]  # of other tasks, the digest is of targets too
    if task == "classification":
        counts = [split.labels.bincount(minlength=len(contents.classes)).tolist() for split in (train, valid, test)]
    fingerprint = hashlib.sha256(json.dumps([contents.classes, counts, content]).encode()).hexdigest()
    return ImageData(data_name(dataset), contents.classes, contents.flippable, train, valid, test, mean, std,
                     fingerprint, contents.notes, contents.skipped, center_crop, task)  # fmt: skip


def _checked_size(image_size: int | Size | str | None) -> Size | str | None:
    if image_size is None or image_size == "own":
        return image_size
    try:
        return check_image_size(image_size)
    except ValueError as error:
        raise UserError(f"image_size: expected {error}, or 'own', got {image_size!r}") from error


def data_name(dataset: str) -> str:
    """What checkpoints and reports call a data set: its own name, or that of its folder.

    Raises:
        UserError: it is neither a known name nor a possible path.
    """
    try:
        return dataset if dataset in SOURCES else Path(dataset).resolve().name
    except (OSError, ValueError) as error:
        raise UserError(f"dataset '{dataset}' is no path: {error}") from error


def _with_channels(split: Split, channels: int) -> Split:
    return replace(split, images=to_channels(split.images, channels)) if isinstance(split.images, Tensor) else split


def _find_source(dataset: str, task: str, image_size: Size | str | None, center_crop: bool, **how: Any) -> Source:
    if dataset in SOURCES:
        if task != "classification":
            raise UserError(f"{dataset} has classes alone: give the folder of a data set for the task {task}")
        if image_size == "own":
            raise UserError(f"image_size own is for a folder of images: leave it out for the size of {dataset}")
        if center_crop and isinstance(image_size, tuple) and image_size[0] != image_size[1]:
            raise UserError(
                f"center_crop is for a folder of images, and those of {dataset} are square: give a square image_size, "
                f"or leave out center_crop to stretch them"
            )
        return SOURCES[dataset]
    how |= {"own_size": image_size == "own", "center_crop": center_crop}
    try:
        if Path(dataset).is_dir():
            folder = Path(dataset)
            return folder_source(folder, **how) if task == "classification" else target_source(folder, task, **how)
    except OSError as error:
        raise UserError(f"dataset '{dataset}' cannot be read: {error.strerror or error}") from error
    if os.sep in dataset:
        raise UserError(f"dataset '{dataset}': there is no such folder")
    raise UserError(
        f"unknown dataset '{dataset}': did you mean {nearest(dataset, SOURCES)!r}? "
        f"Known are {', '.join(SOURCES)}, or the path of a folder with train/<class>/* images"
    )


def _count_phrase(by_class: dict[str, int]) -> str:
    """Such as '200 (cat: 90, dog: 110)'; of more than ten classes, the smallest and the largest."""
    names = sorted(by_class, key=by_class.__getitem__)
    if by_class[names[0]] == by_class[names[-1]]:
        each = f"{by_class[names[0]]:,} per class"
    elif len(names) <= 10:
        each = ", ".join(f"{name}: {count:,}" for name, count in by_class.items())
    else:
        each = " to ".join(f"{name}: {by_class[name]:,}" for name in (names[0], names[-1]))
    return f"{sum(by_class.values()):,} ({each})"


def _target_phrase(task: str, by_name: dict[str, Any]) -> str:
    """Such as 'sunny: 20, windy: 12' or 'weight: 3.2 ± 1.1'; of many, the first five."""
    phrases = [
        f"{name}: {row['mean']:.4g} ± {row['std']:.3g}" if task == "regression" else f"{name}: {row:,}"
        for name, row in by_name.items()
    ]
    return shortened(phrases)


def _pixels_digest(splits: Iterable[Split]) -> str:
    """SHA-256 of all labels and of the pixels of a few images of each split, always the same ones."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.labels.numpy().tobytes())
        sample = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:FINGERPRINT_IMAGES]
        for images, _ in split.batches(FINGERPRINT_IMAGES, sample):
            digest.update(images.numpy().tobytes())
    return digest.hexdigest()


def _decode_all(split: Split) -> None:
    """Decode each image once that is not in memory: a broken one is better found now than at the end of training."""
    if not isinstance(split.images, Tensor):
        for _ in split.batches(chunk_size(split.image_size, 4096), workers=os.cpu_count() or 0):
            pass


def _pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the pixels in [0, 1]; 1 for the deviation of a constant channel."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for images, _ in split.batches(chunk_size(split.image_size, 4096), workers=os.cpu_count() or 0):
        pixels = images.double().div_(255)
        count += pixels.numel() // pixels.shape[1]
        total = total + pixels.sum((0, 2, 3))
        squares = squares + pixels.square_().sum((0, 2, 3))
    mean = total / count
    variance = squares / count - mean.square()
    std = torch.where(variance > 1e-12, variance.clamp_min(0).sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
