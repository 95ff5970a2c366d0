"""Images with their labels, split into training, validation and test, and read in batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from images.files import ImageFiles, ignore_group_signals
from support import UserError
from support.distributed import ALONE, World


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
                DataLoader(self.images, batch_sampler=sampler, num_workers=workers, worker_init_fn=ignore_group_signals)
            )
        try:
            yield from zip(images, (self.labels[indices] for indices in chosen), strict=True)
        except UserError as error:  # from a worker it comes with the worker's traceback around it
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("support.errors.UserError: ")) from error


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


def fraction_of(images: int, fraction: float, what: str) -> int:
    """How many of so many images a `fraction` is, if it leaves any."""
    count = round(images * fraction)
    if not 0 < count < images:
        raise UserError(f"{images} images leave none for training or {what} when {fraction:g} of them go to {what}")
    return count


def split_off(split: Split, fraction: float, seed: int, what: str) -> tuple[Split, Split]:
    """The split less a random `fraction` of it, and that fraction."""
    count = fraction_of(len(split), fraction, what)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.subset(order[count:].sort().values), split.subset(order[:count].sort().values)


def pixel_moments(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
