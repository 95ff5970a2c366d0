"""Image files, decoded into the pixels that networks take."""

from __future__ import annotations

import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from images.transforms import CHUNK, chunk_size
from models import IMAGE_SIZE, Size
from support import UserError, first_line

ENDINGS = frozenset((*IMG_EXTENSIONS, ".gif"))
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's others, one runs Ghostscript
LARGE = 2**24  # pixels of an image above which no second such image is decoded at the same time
ONE_AT_A_TIME = threading.Lock()  # a gigabyte for each of many threads is more than most machines have
GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")

Item = TypeVar("Item")
Result = TypeVar("Result")


def to_pixels(picture: Image.Image, channels: int, size: Size = IMAGE_SIZE, center_crop: bool = False) -> Tensor:
    """The pixels of an image in the shape that networks take.

    Args:
        picture: an image of any size, of 8 bits per channel or of one channel of 16 bits (which are scaled to 8). It
            is turned as its EXIF orientation says. Of an animation, the first frame is taken.
        channels: 1 for grey, 3 for RGB; the image is converted.
        size: height and width of the pixels.
        center_crop: of an image of another shape, cut out the center rather than stretch the whole.

    Returns:
        uint8 [channels, *size], resized bilinearly if the image has another size.

    Raises:
        OSError: the file of an image that PIL reads lazily is damaged.
        ValueError: the pixels are floats, which could be NaN, or integers that 16 unsigned bits cannot hold.
    """
    mode = "L" if channels == 1 else "RGB"
    picture = _to_eight_bits(upright(picture))
    picture = picture if picture.mode == mode else picture.convert(mode)
    height, width = size
    if center_crop:
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    else:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def upright(picture: Image.Image) -> Image.Image:
    """The image, turned as its EXIF orientation says."""
    picture.load()
    if not picture.info:  # to look for an orientation takes a tenth of the time of a small image
        return picture
    try:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(picture) if turned else picture
    except Exception:  # PIL raises many kinds for a damaged EXIF block, which then says nothing
        return picture


def upright_size(picture: Image.Image) -> Size:
    """Height and width of an image, turned as its EXIF orientation says; no more than its header is read."""
    try:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
    except Exception:  # as for `upright`
        turned = False
    return picture.size if turned else picture.size[::-1]


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """The image with 16 bits scaled to 8; PIL's own conversion would clip them at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    pixels = np.asarray(picture)
    if picture.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels are of mode {picture.mode}: expected 8 or 16 bits per channel, unsigned")
    scaled = np.divide(pixels, 257, dtype=np.float32)
    return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """An image file, of which the header is read.

    Raises:
        UserError: the file cannot be read, also while the caller decodes it. The message names the file.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # to open a pipe would be to wait for its writer
            raise OSError("it is not a regular file")
        with Image.open(path, formats=FORMATS) as picture:
            yield picture
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise UserError(f"cannot read the image {path}: {first_line(error)}") from error


class ImageFiles(Dataset[Tensor]):
    """Image files that are decoded on access: item i is uint8 [channels, *size].

    Args:
        paths: the files.
        channels: 1 for grey, 3 for RGB; every image is converted.
        size: height and width to which every image is resized.
        center_crop: as for `to_pixels`.

    Raises:
        UserError: on access, a file that is not a readable image of one of `FORMATS`.
    """

    def __init__(
        self, paths: Sequence[str | Path], channels: int, size: Size = IMAGE_SIZE, center_crop: bool = False
    ) -> None:
        self.paths = np.array([str(path) for path in paths])  # one buffer, which worker processes need not copy
        self.channels, self.size, self.center_crop = channels, size, center_crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with (
            open_image(str(self.paths[index])) as picture,
            ONE_AT_A_TIME if picture.width * picture.height > LARGE else nullcontext(),
        ):
            return to_pixels(picture, self.channels, self.size, self.center_crop)

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at `indices`."""
        return ImageFiles(self.paths[indices.numpy()].tolist(), self.channels, self.size, self.center_crop)

    def decode_all(self) -> Tensor:
        """All images in memory: uint8 [n, channels, *size]."""
        images = torch.empty(len(self), self.channels, *self.size, dtype=torch.uint8)
        for index, image in enumerate(_in_threads(self.__getitem__, range(len(self)), chunk_size(self.size))):
            images[index] = image
        return images


def image_paths(folder: Path) -> list[str]:
    """The paths of every image anywhere below a folder, sorted, as `list_images` lists them.

    Raises:
        UserError: there is no such folder, or a folder that cannot be read.
    """
    if not is_folder(folder):
        raise UserError(f"there is no folder {folder}")
    return sorted(list_images(folder, folder, LeftOut())[0])


def read_images(
    folder: Path, channels: int, size: Size = IMAGE_SIZE, center_crop: bool = False
) -> tuple[Tensor, list[str]]:
    """Every image anywhere below a folder, as `list_images` lists them.

    Args:
        folder: where to look, its subfolders included.
        channels: 1 for grey, 3 for RGB; every image is converted.
        size: height and width to which every image is resized.
        center_crop: as for `to_pixels`.

    Returns:
        The images, uint8 [n, channels, *size], in the order of their paths; and the paths of the files that were
        skipped because they cannot be read.

    Raises:
        UserError: there is no such folder, or no readable image in it.
    """
    paths = image_paths(folder)

    results = list(_in_threads(partial(_try_read, channels, size, center_crop), paths, chunk_size(size)))
    images = [image for image in results if image is not None]
    if not images:
        raise UserError(f"{folder} holds no readable image ({len(paths)} files look like one)")
    return torch.stack(images), [path for path, image in zip(paths, results, strict=True) if image is None]


def all_grey(paths: Sequence[str]) -> bool:
    """Whether every image has one channel besides transparency; no more than the headers is read.

    Raises:
        UserError: a file before the first image in color cannot be read.
    """

    def is_grey(path: str) -> bool:
        with open_image(path) as picture:
            return picture.mode in GREY_MODES

    return all(_in_threads(is_grey, paths))


def common_size(paths: Sequence[str]) -> Size:
    """The height and width that all images have; no more than the headers is read.

    Raises:
        UserError: images of several sizes, or a file that cannot be read.
    """

    def size(path: str) -> Size:
        with open_image(path) as picture:
            return upright_size(picture)

    first = size(paths[0])
    for path, other in zip(paths, _in_threads(size, paths), strict=True):
        if other != first:
            raise UserError(
                f"the images have no common size: {paths[0]} is of {first[0]}×{first[1]} pixels, {path} of "
                f"{other[0]}×{other[1]}: give an image_size in place of own"
            )
    return first


def unreadable(paths: Sequence[str]) -> set[int]:
    """The indices of the files that cannot be decoded; all are tried."""
    images = _in_threads(partial(_try_read, 3, IMAGE_SIZE, False), paths)
    return {index for index, image in enumerate(images) if image is None}


def _try_read(channels: int, size: Size, center_crop: bool, path: str) -> Tensor | None:
    """The pixels of a file, None if it cannot be read."""
    try:
        return ImageFiles([path], channels, size, center_crop)[0]
    except UserError:
        return None


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item], chunk: int = CHUNK) -> Iterator[Result]:
    """The function of each item, in their order, computed for so many at a time."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), chunk):  # a million waiting tasks would take a gigabyte
            yield from pool.map(function, items[start : start + chunk])


@dataclass
class LeftOut:
    """What is not read of a folder: for each reason the number of files and folders, and the first of them."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count a file or folder."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, name)

    def __str__(self) -> str:
        """Such as '.txt files: 3 (first cat/a.txt), hidden folders: 1 (.git)'; of many reasons, the five commonest."""
        reasons = sorted(self.counts, key=lambda reason: -self.counts[reason])
        phrases = [
            f"{reason}: {self.counts[reason]:,} ({'first ' if self.counts[reason] > 1 else ''}{self.first[reason]})"
            for reason in reasons[:5]
        ]
        rest = sum(self.counts[reason] for reason in reasons[5:])
        return ", ".join([*phrases, f"others: {rest:,}"] if rest else phrases)


def list_images(folder: Path, root: Path, left_out: LeftOut) -> tuple[list[str], array[int]]:
    """The files anywhere below a folder that have the ending of an image.

    Left out are hidden files and folders, links to folders, and links to files that are not below the root.

    Args:
        folder: where to look.
        root: where the target of a link must be: the folder, or one that it is in.
        left_out: what is left out is counted there, by its path relative to the root.

    Returns:
        The paths, sorted by folder and then by name, and the sizes of the files, in bytes.

    Raises:
        UserError: a folder cannot be read.
    """
    folders, files = [str(folder)], []
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    name = entry.path[len(str(root)) + 1 :]
                    if is_hidden(entry.name):
                        kind = "folders" if entry.is_dir(follow_symlinks=False) else "files"
                        left_out.add(f"hidden {kind}", name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_symlink() and not (Path(entry.path).is_file() and is_inside(entry.path, root)):
                        left_out.add("links to folders or out of it", name)
                    elif (ending := Path(entry.name).suffix.lower()) not in ENDINGS:
                        left_out.add(f"{ending} files" if ending else "files without an ending", name)
                    else:
                        files.append((parent, entry.name, entry.stat().st_size))
        except OSError as error:
            raise UserError(f"cannot read the folder {parent}: {error.strerror or error}") from error
    files.sort()
    return [f"{parent}{os.sep}{name}" for parent, name, _ in files], array("q", [size for _, _, size in files])


def is_inside(path: str, folder: Path) -> bool:
    """Whether a path, its links followed, is below a folder."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def is_hidden(name: str) -> bool:
    """Whether a file or folder holds a program's notes, such as .git or the __MACOSX of an archive."""
    return name.startswith(".") or name == "__MACOSX"


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a path that cannot be looked up is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, not permitted; with a NUL
        return False
