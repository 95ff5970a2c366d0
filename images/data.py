"""A data set split for a run: training, validation and test images, and the constants that normalize them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from images.folders import folder_source
from images.sources import SOURCES, Source
from images.splits import Split, held_out_count
from support import UserError, nearest

TEST_FRACTION = 0.2  # of a data set that comes without a test split
TEST_SEED = 0  # not the run's seed: every run is tested on the same images
FINGERPRINT_IMAGES = 64  # of each split, whose pixels are part of the fingerprint where images come from no files


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set, split, with the constants that normalize it.

    Attributes:
        name: what checkpoints and reports call it.
        classes: the names of the classes, by label.
        flippable: whether mirror images are as good as the originals.
        train: the images to train on.
        valid: the images held out to choose the best epoch and the settings by.
        test: the images that are looked at once, at the end.
        mean: per channel, of the training split's pixels in [0, 1].
        std: their standard deviation, per channel.
        fingerprint: SHA-256, in hexadecimal, of the names of the classes, the numbers of images, and what the images
            are: the relative paths and sizes of a folder's files; else all labels and the pixels of a fixed sample.
            Two runs on the same data have the same fingerprint, whether or not the images fit in memory.
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

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """The number of images by split ('train', 'valid', 'test') and class."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {
            name: dict(zip(self.classes, split.labels.bincount(minlength=len(self.classes)).tolist(), strict=True))
            for name, split in splits.items()
        }

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return len(self.mean)


def load_data(
    dataset: str,
    data_dir: str | Path,
    valid_size: float,
    seed: int,
    memory_limit: float | None = None,
    batch_size: int = 1,
) -> ImageData:
    """A data set by its name, or the path of a folder of images, split for a run.

    Args:
        dataset: a key of `images.SOURCES` ('MNIST5k', 'MNIST', 'CIFAR10', 'CIFAR100'), or a folder with
            `train/<class>/*` and, if it has one, `test/<class>/*`.
        data_dir: where downloads are kept.
        valid_size: the fraction of the training images that is held out for validation.
        seed: of the split into training and validation.
        memory_limit: for a folder, bytes of images to hold in memory at most; by default half of the free memory.
        batch_size: the run's, which the training images must at least fill.

    Raises:
        UserError: an unknown name, splits without images or smaller than a batch (both before any image is read),
            data that is not there and cannot be downloaded, a broken file or folder.
    """
    source = _find_source(dataset, memory_limit)
    count = source.train_images
    count -= 0 if source.has_test else held_out_count(count, TEST_FRACTION, "test")
    count -= held_out_count(count, valid_size, "validation")
    if batch_size > count:
        raise UserError(f"batch_size {batch_size} is more than the {count} training images: give at most that")
    contents = source.read(Path(data_dir))
    train, test = contents.train, contents.test
    if test is None:
        train, test = train.hold_out(TEST_FRACTION, TEST_SEED, "test")
    train, valid = train.hold_out(valid_size, seed, "validation")
    mean, std = _pixel_statistics(train)
    content = contents.files_digest or _pixels_digest((train, valid, test))
    counts = [split.labels.bincount(minlength=len(contents.classes)).tolist() for split in (train, valid, test)]
    fingerprint = hashlib.sha256(json.dumps([contents.classes, counts, content]).encode()).hexdigest()
    return ImageData(
        data_name(dataset), contents.classes, contents.flippable, train, valid, test, mean, std, fingerprint
    )


def data_name(dataset: str) -> str:
    """What checkpoints and reports call a data set: its own name, or that of its folder."""
    return dataset if dataset in SOURCES else Path(dataset).resolve().name


def _find_source(dataset: str, memory_limit: float | None) -> Source:
    if dataset in SOURCES:
        return SOURCES[dataset]
    if Path(dataset).is_dir():
        return folder_source(Path(dataset), memory_limit)
    if os.sep in dataset:
        raise UserError(f"dataset {dataset!r}: there is no such folder")
    raise UserError(
        f"unknown dataset {dataset!r}: did you mean {nearest(dataset, SOURCES)!r}? "
        f"Known are {', '.join(SOURCES)}, or the path of a folder with train/<class>/* images"
    )


def _pixels_digest(splits: Iterable[Split]) -> str:
    """SHA-256 of all labels and of the pixels of a few images of each split, always the same ones."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.labels.numpy().tobytes())
        sample = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:FINGERPRINT_IMAGES]
        for images, _ in split.batches(FINGERPRINT_IMAGES, sample):
            digest.update(images.numpy().tobytes())
    return digest.hexdigest()


def _pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the pixels in [0, 1]; 1 for the deviation of a constant channel."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for images, _ in split.batches(4096, workers=os.cpu_count() or 0):
        pixels = images.double().div_(255)
        count += pixels.numel() // pixels.shape[1]
        total = total + pixels.sum((0, 2, 3))
        squares = squares + pixels.square_().sum((0, 2, 3))
    mean = total / count
    variance = squares / count - mean.square()
    std = torch.where(variance > 1e-12, variance.clamp_min(0).sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
