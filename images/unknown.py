"""Sets of images whose classes a network does not know, by name: letters, clothes, house numbers, noise, a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import datasets

from images.files import is_folder, read_images
from images.sources import pixels_of, resize, without_package
from images.transforms import to_channels
from models import IMAGE_SIZE, Size
from support import UserError, nearest

GENERATED = 2000  # images of noise, and of constants


@dataclass(frozen=True, eq=False)
class UnknownSet:
    """Images of other classes than those that a network knows.

    Attributes:
        name: of the set, in tables and pictures.
        images: uint8 [n, channels, height, width], in random order.
        skipped: how many files were left out because they cannot be read.
        notes: what was made of the set where it is not what it could be, one line each.
    """

    name: str
    images: Tensor
    skipped: int = 0
    notes: tuple[str, ...] = ()


def load_unknown(
    name: str,
    data_dir: str | Path,
    channels: int,
    known: Iterable[Tensor] = (),
    seed: int = 0,
    size: Size = IMAGE_SIZE,
    center_crop: bool = False,
) -> UnknownSet:
    """A set of unknown images by its name, or a folder of images.

    Grey images become RGB ones of equal channels for a network of color, and RGB images become grey by Pillow's
    weights for a network of grey. Exact copies of known images are taken out, and of images that are exactly alike, all
    but one: notMNIST has a blank letter 254 times, and a score of it would count as often.

    Args:
        name: a key of `UNKNOWN`, or the path of a folder, of which every image is taken, also those in its subfolders.
        data_dir: where data sets are. One that torchvision has not downloaded there is looked for as a folder of
            images: `<data_dir>/<name>/test`, `<data_dir>/<name>-png/test` or `<data_dir>/<name>`.
        channels: 1 for grey, 3 for RGB.
        known: uint8 [n, channels, *size], the images of which none is unknown.
        seed: of the order, and of noise and constants.
        size: height and width to which the images are resized.
        center_crop: for the images of a folder, as for `to_pixels`.

    Raises:
        UserError: an unknown name, a set that is not there, no readable image, or none but copies of known ones.
    """
    shape = Shape(channels, size, center_crop)
    if name in UNKNOWN:
        loaded = UNKNOWN[name](Path(data_dir), shape, seed)
    elif is_folder(Path(name)):
        loaded = _from_folder(Path(name), shape)
    elif os.sep in name:
        raise UserError(f"unknown set '{name}': there is no folder of this name")
    else:
        raise UserError(
            f"unknown set '{name}': did you mean {nearest(name, UNKNOWN)!r}? Known are {', '.join(UNKNOWN)}, or the "
            f"path of a folder of images"
        )
    images, notes = loaded.images, loaded.notes
    if images.shape[1] != channels:
        notes += (f"{loaded.name}: converted to {'grey' if channels == 1 else 'RGB'}, which the networks take",)
        images = to_channels(images, channels)
    copies = {pixels for batch in known for pixels in _pixels(batch)}
    contents = [*_pixels(images)]
    fresh = {pixels: index for index, pixels in reversed([*enumerate(contents)]) if pixels not in copies}
    if not fresh:
        raise UserError(f"{loaded.name} has no image that is not among the known ones: give another unknown set")
    known_ones = sum(pixels in copies for pixels in contents)
    for count, reason in (
        (known_ones, "are exact copies of known ones"),
        (len(images) - known_ones - len(fresh), "are exactly like another one of the set"),
    ):
        if count:
            notes += (f"{loaded.name}: left out {count:,} images that {reason}",)
    images = images[sorted(fresh.values())]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return UnknownSet(loaded.name, images[order], loaded.skipped, notes)


class Shape(NamedTuple):
    """What images become: their channels, their height and width, and whether the center of others is cut out."""

    channels: int
    size: Size = IMAGE_SIZE
    center_crop: bool = False


def _from_folder(folder: Path, shape: Shape) -> UnknownSet:
    images, skipped = read_images(folder, *shape)
    total = len(skipped) + len(images)
    notes = (f"skipped {len(skipped)} unreadable of {total} images, the first {skipped[0]}",) if skipped else ()
    return UnknownSet(folder.resolve().name, images, len(skipped), notes)


def _letters(data_dir: Path, shape: Shape, seed: int) -> UnknownSet:
    """The folders A to J of `notMNIST_small` or `notMNIST_large`, or of the folder itself."""
    for folder in (data_dir / "notMNIST_small", data_dir / "notMNIST_large", data_dir):
        if all(is_folder(folder / letter) for letter in "ABCDEFGHIJ"):
            return _from_folder(folder, shape)
    raise UserError(
        f"{data_dir} has no notMNIST_small or notMNIST_large and no folders A to J: give --not_mnist_dir, or another "
        f"set of unknown images with --unknown or --ood_dir"
    )


def _test_split(
    load: Callable[[str], datasets.VisionDataset], name: str, data_dir: Path, shape: Shape, seed: int
) -> UnknownSet:
    """The test images of a torchvision data set that is there, or of a folder of its name."""
    try:
        data = load(str(data_dir))
    except ImportError as error:
        raise without_package(name, error) from error
    except (RuntimeError, OSError):  # it is not there, or not whole
        for folder in (data_dir / name / "test", data_dir / f"{name}-png" / "test", data_dir / name):
            if is_folder(folder) and not is_folder(folder / "raw"):  # where torchvision keeps its own files
                return replace(_from_folder(folder, shape), name=name)
        raise UserError(
            f"{name} is not in {data_dir}: download it there by torchvision.datasets.{name}, or put a folder of its "
            f"images at {data_dir / name}"
        ) from None
    return UnknownSet(name, resize(pixels_of(data), shape.size))


def _noise(data_dir: Path, shape: Shape, seed: int) -> UnknownSet:
    """Every value uniform and independent."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (GENERATED, shape.channels, *shape.size), dtype=torch.uint8, generator=generator)
    return UnknownSet("noise", pixels)


def _constants(data_dir: Path, shape: Shape, seed: int) -> UnknownSet:
    """Images of one color each, uniform and independent, none of them twice."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(256, (GENERATED, shape.channels, 1, 1), dtype=torch.uint8, generator=generator).unique(dim=0)
    return UnknownSet("constants", colors.expand(-1, -1, *shape.size).contiguous())


UNKNOWN: dict[str, Callable[[Path, Shape, int], UnknownSet]] = {
    "notMNIST": _letters,
    **{
        name: partial(_test_split, partial(kind, train=False, download=False), name)
        for name, kind in {
            "MNIST": datasets.MNIST,
            "FashionMNIST": datasets.FashionMNIST,
            "KMNIST": datasets.KMNIST,
            "CIFAR10": datasets.CIFAR10,
            "CIFAR100": datasets.CIFAR100,
        }.items()
    },
    "SVHN": partial(_test_split, partial(datasets.SVHN, split="test", download=False), "SVHN"),
    "noise": _noise,
    "constants": _constants,
}


def _pixels(images: Tensor) -> Iterator[bytes]:
    """Those of each image. Rows of an array come five times as fast as those of a tensor."""
    return (image.tobytes() for image in images.numpy())
