"""From pixels to what a network takes: normalization and augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8192  # images that are decoded, or predicted, at a time


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels with the mean subtracted, divided by the deviation, per channel.

    Args:
        images: uint8 [n, channels, height, width].
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].

    Returns:
        float32 of the same shape, on the same device.

    Raises:
        ValueError: the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(
            f"expected uint8 pixels from 0 to 255, got {images.dtype}: multiply ToTensor's floats in [0, 1] by 255 and "
            f"convert them by .round().to(torch.uint8)"
        )
    center = torch.tensor([255 * m for m in mean], device=images.device).view(-1, 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(-1, 1, 1)
    return images.float().sub_(center).mul_(scale)


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image at random and, with `flip`, mirror each with probability ½.

    Args:
        images: [n, channels, height, width].
        shift: the largest shift along either axis, in pixels; zeros fill the border.
        flip: whether to mirror left and right.
        generator: of the random shifts and mirrors, on the CPU.

    Returns:
        Images of the same shape and type.
    """
    count, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
    if shift:
        down, right = torch.randint(0, 2 * shift + 1, (2, count), generator=generator).to(images.device)
        windows = F.pad(images, [shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(count, device=images.device), :, down, right]
    return images
