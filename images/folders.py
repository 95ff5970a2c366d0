"""A folder of images as a data set: `train/<class>/*` and, if it has them, `val/<class>/*` and `test/<class>/*`."""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from images.files import (
    ImageFiles,
    LeftOut,
    all_grey,
    common_size,
    is_folder,
    is_hidden,
    is_inside,
    list_images,
    unreadable,
)
from images.sources import Contents, Source
from images.splits import Split
from models import Size
from support import UserError

MEMORY = Path("/proc/meminfo")  # where Linux says what is available
VALIDATION = ("val", "valid", "validation")  # names of the folder of validation images


@dataclass
class SplitFiles:
    """The image files of `train/`, of the validation folder or of `test/`.

    Attributes:
        folder: the folder of the classes' folders.
        classes: their names, sorted.
        paths: of the images, class by class.
        sizes: in bytes, of each.
        labels: index of its class, of each; for other tasks, what is known of it.
        left_out: what else is in the folder.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: list[str]
    sizes: array[int]
    labels: list[Any]
    left_out: LeftOut

    def drop(self, indices: set[int]) -> None:
        """Remove the images at these indices."""
        kept = [index for index in range(len(self.paths)) if index not in indices]
        self.paths = [self.paths[index] for index in kept]
        self.sizes = array("q", (self.sizes[index] for index in kept))
        self.labels = [self.labels[index] for index in kept]

    def check(self) -> None:
        """Raise a `UserError` if there is no class, or one without images."""
        labels = set(self.labels)
        empty = [name for label, name in enumerate(self.classes) if label not in labels]
        if empty or not self.classes:
            reason = f"no image in {shortened(empty)}" if empty else "there is no such folder"
            left_out = f"; left out of it are {self.left_out}" if self.left_out.counts else ""
            raise UserError(f"{self.folder} must hold a folder of images for each class: {reason}{left_out}")


def folder_source(
    root: Path,
    memory_limit: float | None = None,
    skip_broken: bool = False,
    channels: int | None = None,
    own_size: bool = False,
    center_crop: bool = False,
) -> Source:
    """The folder as a source. By default its images are read as grey if every one is grey, else as RGB.

    Hidden files and folders are left out, and links that lead to a folder or out of `train/`, `test/` or the
    validation folder, by which images of one could get into another; so are files without the ending of an image.
    `Contents.notes` says what was left out.

    Args:
        root: the folder of `train/`, `test/`, and `val/`, `valid/` or `validation/`.
        memory_limit: bytes of images to hold in memory at most, by default half of the free memory; beyond it the
            images are decoded as they are needed.
        skip_broken: leave out the images that cannot be read, for which all are decoded once more.
        channels: 1 to read the images as grey, 3 as RGB.
        own_size: give the images the size that they have, whatever size is asked for.
        center_crop: as for `to_pixels`.

    Raises:
        UserError: folders that are missing, empty or cannot be read, only one class, or folders with different
            classes; on reading, an image that cannot be read, or images of several sizes with `own_size`.
    """
    folders, unused = find_folders(root)
    splits = {purpose: _list_split(folder) for purpose, folder in folders.items()}
    classes = splits["train"].classes
    if len(classes) == 1:
        raise UserError(f"{root / 'train'} has only the class {classes[0]}: expected two or more")
    for split in splits.values():
        if split.classes != classes:
            raise UserError(
                f"{root}: train/ and {split.folder.name}/ must have the same classes, but only one has "
                f"{shortened(sorted(set(classes) ^ set(split.classes)))}"
            )
    skipped = drop_unreadable(splits.values(), root) if skip_broken else ()
    for split in splits.values():
        split.check()

    def read(data_dir: Path, size: Size) -> Contents:
        images, color, _ = read_pixels(splits, None if own_size else size, memory_limit, channels, center_crop)
        contents = {purpose: Split(images[purpose], torch.tensor(files.labels)) for purpose, files in splits.items()}
        return Contents(classes, color, **contents, files_digest=files_digest(splits.values()),
                        notes=folder_notes(splits, unused), skipped=skipped)  # fmt: skip

    return Source(len(splits["train"].paths), "test" in splits, read, "valid" in splits)


def find_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of the splits, by what they are for, and the names of the folders that are for none."""
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if is_folder(Path(entry)) and not is_hidden(entry.name))
    except OSError as error:
        raise UserError(f"cannot read the folder {root}: {error.strerror or error}") from error
    if "train" not in names:
        raise UserError(f"{root} has no folder train/: expected train/<class>/* images")
    valid = [name for name in VALIDATION if name in names]
    if len(valid) > 1:
        raise UserError(f"{root} has the folders {' and '.join(valid)}: expected one folder of validation images")
    folders = {"train": root / "train"}
    if valid:
        folders["valid"] = root / valid[0]
    if "test" in names:
        folders["test"] = root / "test"
    for one, other in permutations(folders.values(), 2):
        if is_inside(str(one), other) or one.samefile(other):
            raise UserError(f"{root}: {one.name}/ is a link into {other.name}/: give each its own images")
    return folders, [name for name in names if root / name not in folders.values()]


def _list_split(folder: Path) -> SplitFiles:
    left_out, classes = LeftOut(), []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    left_out.add("hidden folders" if is_folder(Path(entry)) else "hidden files", entry.name)
                elif not is_folder(Path(entry)):
                    left_out.add("files in no class folder", entry.name)
                elif entry.is_symlink() and not is_inside(entry.path, folder):
                    left_out.add("links to folders or out of it", entry.name)
                else:
                    classes.append(entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    files = SplitFiles(folder, tuple(classes), [], array("q"), [], left_out)
    for label, name in enumerate(classes):
        paths, sizes = list_images(folder / name, folder, left_out)
        files.paths += paths
        files.sizes += sizes
        files.labels += [label] * len(paths)
    files.check()
    return files


def read_pixels(
    splits: Mapping[str, SplitFiles],
    size: Size | None,
    memory_limit: float | None,
    channels: int | None,
    center_crop: bool,
) -> tuple[dict[str, Tensor | ImageFiles], bool, Size]:
    """The images of each split, decoded if they fit in memory; whether they are in color; and their size.

    Args:
        splits: by what they are for.
        size: height and width; None for that of all images.
        memory_limit: as for `folder_source`.
        channels: as for `folder_source`.
        center_crop: as for `to_pixels`.

    Raises:
        UserError: images of several sizes without one given, or an image that cannot be read.
    """
    paths = [path for split in splits.values() for path in split.paths]
    size = common_size(paths) if size is None else size
    color = channels == 3 or (channels is None and not all_grey(paths))
    total = len(paths) * (3 if color else 1) * math.prod(size)
    fits = total <= (free_memory() / 2 if memory_limit is None else memory_limit)
    files = {name: ImageFiles(split.paths, 3 if color else 1, size, center_crop) for name, split in splits.items()}
    return {name: each.decode_all() if fits else each for name, each in files.items()}, color, size


def drop_unreadable(splits: Iterable[SplitFiles], root: Path) -> tuple[str, ...]:
    """Remove the images that cannot be read, and return their paths, relative to the root."""
    skipped: list[str] = []
    for files in splits:
        indices = unreadable(files.paths)
        skipped += [os.path.relpath(files.paths[index], root) for index in sorted(indices)]
        files.drop(indices)
    return tuple(skipped)


def folder_notes(splits: dict[str, SplitFiles], unused: list[str]) -> tuple[str, ...]:
    """What was made of the folder, where it could be something else than its owner thinks."""
    notes = []
    if "valid" in splits:
        notes.append(f"validation images are those of {splits['valid'].folder.name}/; valid_size is not used")
    if unused:
        notes.append(f"not used: the folders {shortened(unused)}")
    for files in splits.values():
        if files.left_out.counts:
            notes.append(f"left out of {files.folder.name}/: {files.left_out}")
    animated = sum(path.lower().endswith(".gif") for files in splits.values() for path in files.paths)
    if animated:
        notes.append(f"of {animated:,} .gif files the first frame is taken")
    return tuple(notes)


def files_digest(splits: Iterable[SplitFiles]) -> str:
    """SHA-256 of the paths of the files, relative to the root, and of their sizes."""
    digest = hashlib.sha256()
    for files in splits:
        start = len(str(files.folder)) - len(files.folder.name)
        for path, size in zip(files.paths, files.sizes, strict=True):
            digest.update(b"%s\0%d\0" % (os.fsencode(path[start:]), size))
    return digest.hexdigest()


def shortened(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def free_memory() -> float:
    """Bytes of memory that this process can have, one of those that train on this machine.

    Linux says what is available, the pages of files that it keeps included. Elsewhere it is what nothing uses; 4 GiB
    where the system does not tell.
    """
    return _available_memory() / max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # which torchrun sets


def _available_memory() -> float:
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        return 1024.0 * int(lines["MemAvailable"].removesuffix("kB"))
    with suppress(ValueError, OSError, AttributeError):
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return 4.0 * 2**30
