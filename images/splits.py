"""Labeled images: read in batches, and divided at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from images.files import ImageFiles
from images.workers import read_batches
from models import Size
from support import ALONE, UserError, World


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 [n, channels, height, width], or files that are decoded on access.
        labels: int64 [n], the class of each; of other tasks, float32 [n, labels] of 0 and 1, float32 [n, targets], or
            uint8 [n, height, width], the class of each pixel.
    """

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> Size:
        """Height and width of the images."""
        if isinstance(self.images, Tensor):
            return self.images.shape[-2], self.images.shape[-1]
        return self.images.size

    def subset(self, indices: Tensor) -> Split:
        """The examples at `indices`."""
        images = self.images[indices] if isinstance(self.images, Tensor) else self.images.subset(indices)
        return Split(images, self.labels[indices])

    def batches(
        self, batch_size: int, order: Tensor | None = None, workers: int = 0, world: World = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The examples in batches; the last may be smaller.

        Args:
            batch_size: examples per batch, over all processes.
            order: int64, the indices of the examples; by default all, from the first to the last.
            workers: processes that decode image files ahead; 0 for none but this one.
            world: the processes that share each batch. A process gets its share; where that would be empty, the
                batch's first example, so that all processes take the same number of steps.

        Yields:
            uint8 images [b, channels, height, width] and labels [b, ...].

        Raises:
            UserError: an image file that cannot be read.
        """
        order = torch.arange(len(self)) if order is None else order
        batches = order.split(batch_size) if len(order) else ()  # an empty tensor would split into one empty batch
        shares = [batch[world.rank :: world.size] if world.share(len(batch)) else batch[:1] for batch in batches]
        if isinstance(self.images, Tensor):
            images: Iterator[Tensor] = (self.images.index_select(0, indices) for indices in shares)
        else:
            images = read_batches(self.images, shares, workers)
        yield from zip(images, (self.labels[indices] for indices in shares), strict=True)

    def sample(self, count: int, seed: int) -> Split:
        """`count` examples at random, or all if there are no more, in their order: those of a folder are by class.

        Args:
            count: how many.
            seed: of the random choice.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count].sort().values)

    def hold_out(self, fraction: float, seed: int, purpose: str) -> tuple[Split, Split]:
        """Divide the examples at random; both parts keep their order.

        Args:
            fraction: how much of the split is held out.
            seed: of the random choice.
            purpose: what is held out, 'test' or 'validation', for the error message.

        Returns:
            What remains, and what is held out.

        Raises:
            UserError: one of the two would be empty.
        """
        count = held_out_count(len(self), fraction, purpose)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[count:].sort().values), self.subset(order[:count].sort().values)


def held_out_count(total: int, fraction: float, purpose: str) -> int:
    """How many of `total` images `Split.hold_out` would hold out.

    Raises:
        UserError: none, or all of them.
    """
    count = round(total * fraction)
    if not 0 < count < total:
        raise UserError(
            f"{total} images leave none for training or {purpose} when {fraction:g} of them go to {purpose}"
        )
    return count
