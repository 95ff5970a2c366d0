"""Image files: decoded when they are asked for, by this process or by workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from images.transforms import CHUNK
from models.architectures import IMAGE_SIZE
from support import UserError


class ImageFiles(Dataset[Tensor]):
    """Image files, decoded when asked for: item i is uint8 [channels, 32, 32].

    Raises:
        UserError: on access, a file that is not a readable image.
    """

    def __init__(self, paths: Sequence[str], channels: int) -> None:
        self.paths = np.array(paths)  # one buffer, not a list of objects that workers would each copy
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = str(self.paths[index])
        try:
            with Image.open(path) as picture:
                return to_pixels(picture, self.channels)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read the image {path}: {error}") from error

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at `indices`."""
        return ImageFiles(self.paths[indices.numpy()].tolist(), self.channels)

    def decoded(self) -> Tensor:
        """All of them at once: uint8 [n, channels, 32, 32]."""
        images = torch.empty(len(self), self.channels, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            for part in torch.arange(len(self)).split(CHUNK):  # a million waiting at once would take a gigabyte
                for index, image in zip(part, pool.map(self.__getitem__, part.tolist()), strict=True):
                    images[index] = image
        return images


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


def read_images(folder: Path, channels: int) -> tuple[Tensor, list[str]]:
    """Every image anywhere below a folder, and the paths of the files that look like one and cannot be read.

    Returns:
        uint8 [n, channels, 32, 32], in the order of their paths, and the paths that were passed over.

    Raises:
        UserError: there is no such folder, or no readable image in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in datasets.folder.IMG_EXTENSIONS)
    files = ImageFiles(paths, channels)

    def read(index: int) -> Tensor | None:
        try:
            return files[index]
        except UserError:
            return None

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(read, range(len(files))))
    images = [image for image in found if image is not None]
    if not images:
        raise UserError(f"{folder} holds no readable image ({len(paths)} files look like one)")
    return torch.stack(images), [path for path, image in zip(paths, found, strict=True) if image is None]


def is_grey(path: str) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.mode in ("1", "L", "LA", "I", "I;16", "F")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def ignore_group_signals(worker: int) -> None:
    """Of a worker: a signal to all processes of a run is the main one's to answer, which then ends its workers.

    It may do so by SIGTERM, when it exits with the loader still at hand: from it, and from it alone, that is heeded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere nobody knows who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != os.getppid():
        pass
    os._exit(0)
