"""A folder of images as a data set: `train/<class>/*` and, if it has one, `test/<class>/*`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torchvision.datasets import ImageFolder

from images.files import ImageFiles, is_grey
from images.sources import Contents, Source
from images.splits import Split
from models import IMAGE_SIZE
from support import UserError


def folder_source(root: Path, memory_limit: float | None = None) -> Source:
    """The folder as a source. Its images are read as grey if one of every class is grey, else as RGB.

    Args:
        root: the folder of `train/` and `test/`.
        memory_limit: bytes of images to hold in memory at most, by default half of the free memory; beyond it the
            images are decoded as they are needed.

    Raises:
        UserError: folders that are missing or empty, or `train/` and `test/` with different classes; on reading,
            an image that cannot be read.
    """
    train = _list_images(root / "train")
    test = _list_images(root / "test") if (root / "test").is_dir() else None
    if test is not None and test.classes != train.classes:
        unshared = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(
            f"{root}: train/ and test/ must have the same classes, but only one has {', '.join(unshared[:5])}"
        )

    def read(data_dir: Path) -> Contents:
        one_per_class = {label: path for path, label in train.samples}
        channels = 1 if all(map(is_grey, one_per_class.values())) else 3
        total = len(train) + (0 if test is None else len(test))
        fits = total * channels * IMAGE_SIZE**2 <= (free_memory() / 2 if memory_limit is None else memory_limit)

        def split(listed: ImageFolder) -> Split:
            files = ImageFiles([path for path, _ in listed.samples], channels)
            return Split(files.decode_all() if fits else files, torch.tensor(listed.targets))

        return Contents(
            tuple(train.classes),
            channels == 3,
            split(train),
            None if test is None else split(test),
            _digest(root, [train] if test is None else [train, test]),
        )

    return Source(len(train), test is not None, read)


def _digest(root: Path, listings: Iterable[ImageFolder]) -> str:
    """SHA-256 of the paths of the files, relative to the root, and of their sizes."""
    digest = hashlib.sha256()
    for path, _ in chain.from_iterable(listing.samples for listing in listings):
        digest.update(b"%s\0%d\0" % (os.fsencode(os.path.relpath(path, root)), Path(path).stat().st_size))
    return digest.hexdigest()


def _list_images(folder: Path) -> ImageFolder:
    if not folder.is_dir():
        raise UserError(f"{folder.parent} has no folder {folder.name}/: expected {folder.name}/<class>/* images")
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} must hold a folder of images for each class: {str(error).splitlines()[0]}"
        ) from error


def free_memory() -> float:
    """Bytes of memory that no process uses; 4 GiB where the system does not tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30
