"""From pixels to what a network takes: normalization and augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8192  # images of 32×32 that are decoded, or predicted, at a time
LUMA = (19595, 38470, 7471)  # of 65536: Pillow's weights of red, green and blue (ITU-R BT.601)


def chunk_size(image_size: Sequence[int], of_small: int = CHUNK) -> int:
    """How many images of a size take the memory of so many of 32×32; at least 1.

    Args:
        image_size: height and width.
        of_small: the number of images of 32×32.
    """
    return max(1, of_small * 32 * 32 // math.prod(image_size))


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Grey images as RGB ones of equal channels, or RGB images as grey ones by Pillow's weights.

    Args:
        images: uint8 [n, 1 or 3, height, width].
        channels: 1 for grey, 3 for RGB.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    red, green, blue = (weight * channel.int() for weight, channel in zip(LUMA, images.unbind(1), strict=True))
    return ((red + green + blue + 2**15) >> 16).to(torch.uint8)[:, None]


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


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator, crop: float = 1.0) -> Tensor:
    """Shift each image at random; with `flip`, mirror each with probability ½; with `crop`, enlarge a part of each.

    Args:
        images: uint8 [n, channels, height, width].
        shift: the largest shift along either axis, in pixels; zeros fill the border.
        flip: whether to mirror left and right.
        generator: of the random shifts, mirrors and crops, on the CPU.
        crop: the least share of an image's area that its part has: see `random_crop`. 1 for whole images.

    Returns:
        Images of the same shape and type.
    """
    count, _, height, width = images.shape
    if crop < 1:
        images = random_crop(images, crop, generator)
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
    if shift:
        down, right = torch.randint(0, 2 * shift + 1, (2, count), generator=generator).to(images.device)
        windows = F.pad(images, [shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(count, device=images.device), :, down, right]
    return images


def random_crop(images: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """A random part of each image, as large as the image was (Szegedy et al. 2015, section 6).

    Args:
        images: uint8 [n, channels, height, width].
        least: the least share of the area that a part has; shares are uniform from it to 1, and the ratio of the sides
            is 3/4 to 4/3 times that of the image, uniform in its logarithm.
        generator: of the parts, on the CPU.

    Returns:
        uint8 images of the same shape, interpolated bilinearly.
    """
    share, ratio, *places = torch.rand(4, len(images), generator=generator)
    share = least + (1 - least) * share
    ratio = (4 / 3) ** (2 * ratio - 1)
    theta = torch.zeros(len(images), 2, 3)
    for axis, (side, place) in enumerate(zip(((share * ratio).sqrt(), (share / ratio).sqrt()), places, strict=True)):
        theta[:, axis, axis] = side.clamp_max(1)
        theta[:, axis, 2] = (1 - theta[:, axis, axis]) * (2 * place - 1)
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    parts = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return parts.round().to(torch.uint8)
