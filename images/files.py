"""Image files, decoded into the pixels that networks take."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from images.transforms import CHUNK
from models import IMAGE_SIZE
from support import UserError


def to_pixels(picture: Image.Image, channels: int) -> Tensor:
    """The pixels of an image in the shape that networks take.

    Args:
        picture: an image of any size, of 8 bits per channel or of one channel of 16 bits (which are scaled to 8).
        channels: 1 for grey, 3 for RGB; the image is converted.

    Returns:
        uint8 [channels, 32, 32], resized bilinearly if the image has another size.

    Raises:
        OSError: the file of an image that PIL reads lazily is damaged.
        ValueError: the pixels are floats, which could be NaN, or integers that 16 unsigned bits cannot hold.
    """
    picture = _to_eight_bits(picture).convert("L" if channels == 1 else "RGB")
    picture = picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """The image with 16 bits scaled to 8; PIL's own conversion would clip them at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    pixels = np.asarray(picture)
    if picture.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels are of mode {picture.mode}: expected 8 or 16 bits per channel, unsigned")
    return Image.fromarray((pixels / 257).round().astype(np.uint8))


class ImageFiles(Dataset[Tensor]):
    """Image files that are decoded on access: item i is uint8 [channels, 32, 32].

    Args:
        paths: the files.
        channels: 1 for grey, 3 for RGB; every image is converted.

    Raises:
        UserError: on access, a file that is not a readable image.
    """

    def __init__(self, paths: Sequence[str | Path], channels: int) -> None:
        self.paths = np.array([str(path) for path in paths])  # one buffer, which worker processes need not copy
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = str(self.paths[index])
        try:
            with Image.open(path) as picture:
                return to_pixels(picture, self.channels)
        except Exception as error:  # PIL raises many kinds for a damaged file
            raise UserError(f"cannot read the image {path}: {error}") from error

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at `indices`."""
        return ImageFiles(self.paths[indices.numpy()].tolist(), self.channels)

    def decode_all(self) -> Tensor:
        """All images in memory: uint8 [n, channels, 32, 32]."""
        images = torch.empty(len(self), self.channels, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            for chunk in torch.arange(len(self)).split(CHUNK):  # a million waiting tasks would take a gigabyte
                for index, image in zip(chunk, pool.map(self.__getitem__, chunk.tolist()), strict=True):
                    images[index] = image
        return images


def read_images(folder: Path, channels: int) -> tuple[Tensor, list[str]]:
    """Every image anywhere below a folder, by the suffixes of the files.

    Args:
        folder: where to look, its subfolders included.
        channels: 1 for grey, 3 for RGB; every image is converted.

    Returns:
        The images, uint8 [n, channels, 32, 32], in the order of their paths; and the paths of the files that were
        skipped because they cannot be read.

    Raises:
        UserError: there is no such folder, or no readable image in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    files = ImageFiles(paths, channels)

    def read(index: int) -> Tensor | None:
        try:
            return files[index]
        except UserError:
            return None

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read, range(len(files))))
    images = [image for image in results if image is not None]
    if not images:
        raise UserError(f"{folder} holds no readable image ({len(paths)} files look like one)")
    return torch.stack(images), [path for path, image in zip(paths, results, strict=True) if image is None]


def is_grey(path: str) -> bool:
    """Whether an image file has one channel besides transparency.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return picture.mode in ("1", "L", "LA", "I", "I;16", "F")
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error
