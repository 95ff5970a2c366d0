"""A data set split for a run: training, validation and test images, and the constants that normalize them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from images.folders import folder_source
from images.sources import SOURCES, Source
from images.splits import Split, held_out_count
from support import UserError, nearest

TEST_FRACTION = 0.2  # of a data set that comes without a test split
TEST_SEED = 0  # not the run's seed: every run is tested on the same images


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
    """

    name: str
    classes: tuple[str, ...]
    flippable: bool
    train: Split
    valid: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
    return ImageData(data_name(dataset), contents.classes, contents.flippable, train, valid, test, mean, std)


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
