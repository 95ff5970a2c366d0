"""A folder of images with other targets than one class: labels or numbers in a table, or a mask beside each image."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from images.files import LeftOut, is_folder, is_inside, list_images, open_image, upright, upright_size
from images.folders import (
    SplitFiles,
    drop_unreadable,
    files_digest,
    find_folders,
    folder_notes,
    read_pixels,
    shortened,
)
from images.sources import Contents, Source
from images.splits import Split
from models import Size
from support import UserError

TABLES = {"multilabel": "labels.csv", "regression": "targets.csv"}
MASKS = ("images", "masks")  # the folders of segmentation
FILE = "file"  # the column of the paths


def target_source(
    root: Path,
    task: str,
    memory_limit: float | None = None,
    skip_broken: bool = False,
    channels: int | None = None,
    own_size: bool = False,
    center_crop: bool = False,
) -> Source:
    """The folder as a source of images for a task.

    For multilabel, each of `train/`, `val/` and `test/` has a table `labels.csv`: a column `file`, of paths below the
    folder, and a column of 0 and 1 per label. For regression, it has a table `targets.csv`, with a column of numbers
    per target. For segmentation, it has folders `images/` and `masks/`: a mask has the name of its image, whatever the
    ending, and the class of each pixel as its grey value or palette index. `classes.txt` beside `train/` may name the
    classes, one per line; without it they are 0, 1, … up to the largest in `train/`.

    Args:
        root: the folder of `train/`, `test/`, and `val/`, `valid/` or `validation/`.
        task: multilabel, regression or segmentation.
        memory_limit: as for `folder_source`; tables and masks are always in memory.
        skip_broken: as for `folder_source`.
        channels: as for `folder_source`.
        own_size: as for `folder_source`.
        center_crop: as for `to_pixels`; masks follow their images.

    Raises:
        UserError: as `folder_source`; a table or mask that is missing or broken, with the place in it.
    """
    folders, unused = find_folders(root)
    if task == "segmentation":
        splits = {purpose: _list_masked(folder) for purpose, folder in folders.items()}
        names: tuple[str, ...] = ()
    else:
        splits = {purpose: _read_table(folder, task) for purpose, folder in folders.items()}
        names = splits["train"].classes
        for split in splits.values():
            if split.classes != names:
                differing = shortened(sorted({*split.classes} ^ {*names}))
                raise UserError(
                    f"{root}: the tables of train/ and {split.folder.name}/ must have the same columns, but only one "
                    f"has {differing or 'them in this order'}"
                )
    skipped = drop_unreadable(splits.values(), root) if skip_broken else ()
    for files in splits.values():
        if not files.paths:
            raise UserError(f"{files.folder} has no image that can be read")

    def read(data_dir: Path, size: Size) -> Contents:
        images, color, size = read_pixels(splits, None if own_size else size, memory_limit, channels, center_crop)

        def read_targets(files: SplitFiles) -> Tensor:
            if task != "segmentation":
                return torch.tensor(files.labels, dtype=torch.float32)
            pairs = zip(files.paths, files.labels, strict=True)
            return torch.stack([_read_mask(image, mask, size, center_crop) for image, mask in pairs])

        contents = {purpose: Split(images[purpose], read_targets(files)) for purpose, files in splits.items()}
        classes = names or _mask_classes(root, contents, splits)
        digest = hashlib.sha256(files_digest(splits.values()).encode())
        for split in contents.values():
            digest.update(split.labels.numpy().tobytes())
        return Contents(classes, color, **contents, files_digest=digest.hexdigest(),
                        notes=folder_notes(splits, unused), skipped=skipped)  # fmt: skip

    return Source(len(splits["train"].paths), "test" in splits, read, "valid" in splits)


def _read_table(folder: Path, task: str) -> SplitFiles:
    """The images in a table, and what it says of each, in the place of labels."""
    path = folder / TABLES[task]
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            names = tuple(next(reader, ()))
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {path}: expected a table with a column {FILE} and one per {_noun(task)}"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read the table {path}: {error}") from error
    if FILE not in names or len({*names}) < len(names) or len(names) < 2 or not all(names):
        raise UserError(
            f"{path} has the columns {shortened(list(names)) or '(none)'}: expected {FILE} and one per {_noun(task)}, "
            f"each once"
        )
    targets = tuple(name for name in names if name != FILE)
    paths, sizes, values = [], array("q"), []
    for line, cells in rows:
        if len(cells) != len(names):
            raise UserError(
                f"{path}, row {line} has {len(cells)} cells, the first row {len(names)}: expected as many; write "
                f"numbers with a decimal point, and a path with a comma in quotes"
            )
        row = dict(zip(names, cells, strict=True))
        values.append([_value(row[name], task, f"{path}, row {line}, column {name}") for name in targets])
        file = folder / row[FILE]
        try:
            sizes.append(file.stat().st_size)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}, row {line}: there is no image {file}") from error
        if is_folder(file):
            raise UserError(f"{path}, row {line}: {file} is a folder, expected an image")
        if not is_inside(str(file), folder):
            raise UserError(f"{path}, row {line}: {file} is not below {folder}: move it there")
        paths.append(str(file))
    if len({*paths}) < len(paths):
        twice = next(each for index, each in enumerate(paths) if each in paths[:index])
        raise UserError(f"{path} has two rows of {os.path.relpath(twice, folder)}: expected one per image")
    left_out = LeftOut()
    for other in sorted({*list_images(folder, folder, LeftOut())[0]} - {*paths}):
        left_out.add("images that are not in the table", os.path.relpath(other, folder))
    return SplitFiles(folder, targets, paths, sizes, values, left_out)


def _noun(task: str) -> str:
    return "label" if task == "multilabel" else "target"


def _value(word: str, task: str, place: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if task == "multilabel" and value not in (0, 1):
        raise UserError(f"{place}: expected 0 or 1, got {word!r}")
    if not math.isfinite(value):
        raise UserError(f"{place}: expected a number, got {word!r}")
    if abs(value) > torch.finfo(torch.float32).max:
        raise UserError(f"{place}: expected a number that float32 can hold, got {word!r}: give it in another unit")
    return value


def _list_masked(folder: Path) -> SplitFiles:
    """The images of a folder, and the path of the mask of each, in the place of labels."""
    left_out = LeftOut()
    listed = []
    for name in MASKS:
        if not is_folder(folder / name):
            raise UserError(f"{folder} has no folder {name}/: expected images/ and masks/ with files of the same names")
        listed.append(list_images(folder / name, folder / name, left_out))
    (images, sizes), (masks, _) = listed
    by_name = {_stem(path, folder / "masks"): path for path in masks}
    missing = [path for path in images if _stem(path, folder / "images") not in by_name]
    if missing:
        raise UserError(f"{missing[0]} has no mask of its name in {folder / 'masks'}")
    if not images:
        raise UserError(f"{folder / 'images'} holds no image")
    labels = [by_name[_stem(path, folder / "images")] for path in images]
    return SplitFiles(folder, (), images, sizes, labels, left_out)


def _stem(path: str, folder: Path) -> str:
    return str(Path(path).relative_to(folder).with_suffix(""))


def _read_mask(image: str, path: str, size: Size, center_crop: bool) -> Tensor:
    """uint8 [height, width], the class of each pixel."""
    with open_image(image) as picture:
        expected = upright_size(picture)  # as `to_pixels` has it
    with open_image(path) as picture:
        mask = upright(picture)
        mode, actual = mask.mode, mask.size[::-1]
        values = Image.fromarray(np.array(mask, dtype=np.uint8)) if mode in ("1", "L", "P") else mask  # P: the indices
    if mode not in ("1", "L", "P"):
        raise UserError(f"the mask {path} has pixels of mode {mode}: expected grey values or palette indices")
    if actual != expected:
        raise UserError(
            f"the mask {path} is of {actual[0]}×{actual[1]} pixels, its image of {expected[0]}×{expected[1]}"
        )
    height, width = size
    if center_crop:
        values = ImageOps.fit(values, (width, height), Image.Resampling.NEAREST)
    else:
        values = values.resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(values))


def _mask_classes(root: Path, contents: dict[str, Split], splits: dict[str, SplitFiles]) -> tuple[str, ...]:
    """The names of the classes in masks, none of which is outside of them."""
    try:
        names = tuple(filter(None, map(str.strip, (root / "classes.txt").read_text(encoding="utf-8").splitlines())))
        source = "classes.txt has"
    except FileNotFoundError:
        names = tuple(map(str, range(int(contents["train"].labels.max()) + 1)))
        source = "train/ has"
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {root / 'classes.txt'}: {error}") from error
    if len(names) < 2:
        raise UserError(f"{root}: {source} {len(names)} classes: expected two or more")
    for purpose, split in contents.items():
        largest = split.labels.flatten(1).amax(1)
        if int(largest.max()) >= len(names):
            mask = splits[purpose].labels[int(largest.argmax())]
            raise UserError(
                f"the mask {mask} has the class {int(largest.max())}: {source} {len(names)} classes, 0 to "
                f"{len(names) - 1}"
            )
    return names


def target_counts(task: str, classes: Iterable[str], labels: Tensor) -> dict[str, Any]:
    """What a split holds: images by label, images that have a class, or the mean and deviation of each target."""
    if task == "regression":
        mean, std = labels.double().mean(0), labels.double().std(0, correction=0)
        rows = zip(mean.tolist(), std.tolist(), strict=True)
        return {name: {"mean": m, "std": s} for name, (m, s) in zip(classes, rows, strict=True)}
    if task == "multilabel":
        return dict(zip(classes, labels.sum(0).long().tolist(), strict=True))
    flat = labels.flatten(1)
    return {name: int((flat == index).any(1).sum()) for index, name in enumerate(classes)}
