"""Corruptions of images, for a test of what a network says about inputs that differ from its training data.

The kinds of Hendrycks & Dietterich (2019, arXiv:1903.12261) that need no more than torch, torchvision and Pillow, at
the five severities that they published for 32×32 pixels (CIFAR-10-C). Rotation, translation and scale have those of
Mu & Gilmer (2019, arXiv:1906.02337; MNIST-C). These are re-implementations: their figures are close to those of the
published files, but not the same. Borders, interpolation and rounding differ, and so does every random number.

Every function takes uint8 images [n, channels, height, width] of 1 or 3 channels and returns the same shape and type.
What is random is drawn per image, from the generator that is given.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from support import UserError, nearest


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Images rotated counterclockwise about their centers with bilinear interpolation; the corners are filled with 0.

    Args:
        images: uint8 [n, channels, height, width].
        degrees: the angle.
    """
    return functional.rotate(images, degrees, InterpolationMode.BILINEAR) if degrees else images


def gaussian_noise(images: Tensor, std: float, generator: Generator) -> Tensor:
    """Independent Gaussian noise of this standard deviation, for pixels in [0, 1], added to every value."""
    return _to_bytes(_to_floats(images) + std * torch.randn(images.shape, generator=generator))


def shot_noise(images: Tensor, photons: float, generator: Generator) -> Tensor:
    """Every value is a Poisson number of photons; white expects this many."""
    return _to_bytes(torch.poisson(photons * _to_floats(images), generator=generator) / photons)


def impulse_noise(images: Tensor, fraction: float, generator: Generator) -> Tensor:
    """This fraction of the values, each at random, is 0 or 255 with equal probability."""
    chance = torch.rand(images.shape, generator=generator)
    return images.masked_fill(chance < fraction / 2, 0).masked_fill(chance > 1 - fraction / 2, 255)


def speckle_noise(images: Tensor, std: float, generator: Generator) -> Tensor:
    """Normal noise of a standard deviation that is a fraction of every pixel's value."""
    return _to_bytes(_to_floats(images) * (1 + std * torch.randn(images.shape, generator=generator)))


def gaussian_blur(images: Tensor, std: float, generator: Generator) -> Tensor:
    """A Gaussian kernel, cut off at four standard deviations."""
    return _to_bytes(functional.gaussian_blur(_to_floats(images), 2 * math.ceil(4 * std) + 1, std))


def saturate(images: Tensor, line: tuple[float, float], generator: Generator) -> Tensor:
    """The saturation s of HSV becomes factor · s + shift, at the same hue and value; what is grey stays grey."""
    factor, shift = line
    pixels = _to_floats(images)
    value = pixels.amax(1, keepdim=True)
    chroma = value - pixels.amin(1, keepdim=True)
    wanted = (factor * chroma + shift * value).clamp(min=0).minimum(value)
    return _to_bytes(torch.where(chroma > 0, value - (value - pixels) * wanted / chroma, pixels))


def defocus_blur(images: Tensor, disk: tuple[float, float], generator: Generator) -> Tensor:
    """Each pixel is a disk; the disk has a radius in pixels, and a Gaussian of 3×3 pixels smooths its edge.

    Args:
        images: uint8 [n, channels, height, width].
        disk: its radius, and the standard deviation of the Gaussian.
        generator: not used.
    """
    radius, edge = disk
    reach = math.floor(radius) + 1  # of the smoothed disk
    offsets = torch.arange(-reach, reach + 1.0)
    inside = (offsets.square()[:, None] + offsets.square() <= radius**2).float()
    weights = (-torch.arange(-1, 2.0).square() / (2 * edge**2)).softmax(0)
    kernel = F.conv2d((inside / inside.sum())[None, None], weights.outer(weights)[None, None], padding=1)
    channels = images.shape[1]
    padded = F.pad(_to_floats(images), [reach] * 4, mode="reflect")
    return _to_bytes(F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels))


def motion_blur(images: Tensor, trail: tuple[int, float], generator: Generator) -> Tensor:
    """Each pixel leaves a trail that fades as half a Gaussian, at an angle of −45° to 45° that is drawn per image.

    Args:
        images: uint8 [n, channels, height, width].
        trail: half its length in pixels, and the standard deviation of the Gaussian.
        generator: of the angles.
    """
    radius, std = trail
    count, channels, height, width = images.shape
    angles = (torch.rand(count, generator=generator) - 0.5) * (math.pi / 2)
    taps = torch.arange(2 * radius + 1)
    weights = (-taps.square() / (2 * std**2)).softmax(0)
    right, down = ((taps * direction[:, None]).round().long() for direction in (angles.cos(), angles.sin()))
    pixels, blurred = _to_floats(images), torch.zeros(images.shape)
    image, channel = torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(-1, 1, 1)
    for tap, weight in enumerate(weights):  # beyond the border its pixels go on
        rows = (torch.arange(height) + down[:, tap, None]).clamp(0, height - 1)[:, None, :, None]
        columns = (torch.arange(width) + right[:, tap, None]).clamp(0, width - 1)[:, None, None, :]
        blurred += weight * pixels[image, channel, rows, columns]
    return _to_bytes(blurred)


def zoom_blur(images: Tensor, steps: int, generator: Generator) -> Tensor:
    """The mean of the images and of zooms into them, of 1, 1.01, 1.02 … in this many steps."""
    pixels = _to_floats(images)
    height, width = images.shape[-2:]
    center = torch.tensor([width - 1, height - 1]) / 2
    total = pixels
    for step in range(steps):
        zoomed = (_positions(height, width) - center) / (1 + step / 100) + center
        total = total + _sample(pixels, zoomed.expand(len(images), -1, -1, -1))
    return _to_bytes(total / (steps + 1))


def fog(images: Tensor, cloud: tuple[float, float], generator: Generator) -> Tensor:
    """A cloud is added, one per image for all channels, and the sum is scaled back to the image's largest value.

    Args:
        images: uint8 [n, channels, height, width].
        cloud: how dense it is, and by how much its variations fade from each scale to the next one of half the size.
        generator: of the clouds.
    """
    density, decay = cloud
    pixels = _to_floats(images)
    height, width = images.shape[-2:]
    size = 2 ** math.ceil(math.log2(max(height, width)))
    clouds = _plasma(len(images), size, decay, generator)[:, None, :height, :width]
    brightest = pixels.amax((1, 2, 3), keepdim=True)
    return _to_bytes((pixels + density * clouds) * brightest / (brightest + density))


def brightness(images: Tensor, increase: float, generator: Generator) -> Tensor:
    """The value of a pixel's color, the largest of its channels in [0, 1], is raised; hue and saturation stay."""
    pixels = _to_floats(images)
    value = pixels.amax(1, keepdim=True)
    raised = (value + increase).clamp_max(1)
    return _to_bytes(torch.where(value > 0, pixels * (raised / value), raised))


def contrast(images: Tensor, factor: float, generator: Generator) -> Tensor:
    """The differences from the mean of each channel of an image are multiplied by a factor."""
    pixels = _to_floats(images)
    mean = pixels.mean((2, 3), keepdim=True)
    return _to_bytes(mean + factor * (pixels - mean))


def elastic(images: Tensor, warp: tuple[float, float, float], generator: Generator) -> Tensor:
    """A random affine map, and on top of it random displacements that are smooth; both are drawn per image.

    Args:
        images: uint8 [n, channels, height, width].
        warp: in units of the image's height: the size of the displacements before they are smoothed, the standard
            deviation of the Gaussian that smooths them, and how far the affine map moves three points along each axis
            at most.
        generator: of both.
    """
    height, width = images.shape[-2:]
    size, smoothness, affine = (height * fraction for fraction in warp)
    center, reach = torch.tensor([width // 2, height // 2]), min(height, width) // 3
    points = center + reach * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    moved = points + affine * _uniform((len(images), 3, 2), generator)
    solution = torch.linalg.solve(torch.cat([points, torch.ones(3, 1)], 1), moved)  # [n, 3, 2]
    displacements = _uniform((len(images), 2, height, width), generator)
    if size:
        kernel = 2 * round(3 * smoothness) + 1
        displacements = functional.gaussian_blur(displacements, [kernel, kernel], [smoothness, smoothness])
    positions = _positions(height, width) + size * displacements.permute(0, 2, 3, 1)
    positions = positions @ solution[:, None, :2] + solution[:, None, 2:]
    return _to_bytes(_sample(_to_floats(images), positions))


def pixelate(images: Tensor, fraction: float, generator: Generator) -> Tensor:
    """Images made smaller, to this fraction of their sides, and large again, by Pillow's box filter."""

    def shrink(picture: Image.Image) -> Image.Image:
        smaller = picture.resize((int(fraction * picture.width), int(fraction * picture.height)), Image.Resampling.BOX)
        return smaller.resize(picture.size, Image.Resampling.BOX)

    return _with_pillow(images, shrink)


def jpeg(images: Tensor, quality: int, generator: Generator) -> Tensor:
    """Images as Pillow's JPEG of this quality has them."""

    def compress(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return _with_pillow(images, compress)


def rotation(images: Tensor, angle: float, generator: Generator) -> Tensor:
    """Images rotated by an angle in radians to one side or the other, which is drawn per image."""
    left, right = (rotate(images, sign * math.degrees(angle)) for sign in (1, -1))
    return torch.where(_coins(len(images), generator)[:, None, None, None], left, right)


def translation(images: Tensor, distance: int, generator: Generator) -> Tensor:
    """Images moved by a distance in pixels up or down, and left or right; the border is filled with 0."""
    height, width = images.shape[-2:]
    down, right = (2 * distance * _coins(len(images), generator) for _ in range(2))
    windows = F.pad(images, [distance] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images)), :, down, right]


def scale(images: Tensor, factor: float, generator: Generator) -> Tensor:
    """Images scaled about their centers with bilinear interpolation; the border is filled with 0."""
    bilinear = InterpolationMode.BILINEAR
    return functional.affine(images, 0, [0, 0], factor, [0, 0], interpolation=bilinear)


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption, and how strong it is at each severity.

    Attributes:
        apply: from uint8 images, a constant and a generator to corrupted images.
        constants: its constants at the severities 1 to 5.
    """

    apply: Callable[[Tensor, Any, Generator], Tensor]
    constants: tuple[Any, Any, Any, Any, Any]


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Corruption(defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion_blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption(zoom_blur, (7, 12, 16, 21, 26)),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": Corruption(
        elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    ),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": Corruption(jpeg, (80, 65, 58, 50, 40)),
    "rotation": Corruption(rotation, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "translation": Corruption(translation, (1, 2, 3, 4, 5)),
    "scale": Corruption(scale, (0.9, 0.8, 0.7, 0.6, 0.5)),
}
FOR_CHOOSING = {  # settings, on validation images, so that a test under those above is one of what was never tried
    "speckle_noise": Corruption(speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "saturate": Corruption(saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
KINDS = CORRUPTIONS | FOR_CHOOSING
SEVERITIES = range(6)  # 0 for the images as they are


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Images under a corruption; a pure function of its arguments.

    Args:
        images: uint8 [n, channels, height, width], of 1 or 3 channels.
        kind: a key of `CORRUPTIONS` or of `FOR_CHOOSING`.
        severity: 1 to 5, or 0 for the images as they are.
        seed: of what is random about it. The severities share their random numbers: the same noise grows.

    Raises:
        ValueError: the images are not uint8 [n, 1 or 3, height, width], or there is no such severity.
        UserError: there is no such kind.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"expected uint8 images [n, 1 or 3, height, width], got {images.dtype} {list(images.shape)}")
    if not isinstance(severity, int) or severity not in SEVERITIES:
        raise ValueError(f"severity must be an integer from 0 to 5, got {severity}")
    if kind not in KINDS:
        raise UserError(
            f"unknown corruption '{kind}': did you mean {nearest(kind, KINDS)!r}? Known are {', '.join(KINDS)}"
        )
    if not severity or not len(images):
        return images
    corruption = KINDS[kind]
    return corruption.apply(images, corruption.constants[severity - 1], torch.Generator().manual_seed(seed))


def _to_floats(images: Tensor) -> Tensor:
    return images.float() / 255


def _to_bytes(pixels: Tensor) -> Tensor:
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform numbers from −1 to 1."""
    return 2 * torch.rand(shape, generator=generator) - 1


def _coins(count: int, generator: Generator) -> Tensor:
    """True or False, with equal probability."""
    return torch.rand(count, generator=generator) < 0.5


def _positions(height: int, width: int) -> Tensor:
    """The (x, y) of every pixel, [height, width, 2]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).float()


def _sample(pixels: Tensor, positions: Tensor) -> Tensor:
    """Images at these positions, [n, height, width, 2] in pixels, bilinearly; beyond the border they are mirrored."""
    height, width = pixels.shape[-2:]
    grid = 2 * positions / torch.tensor([width - 1, height - 1]) - 1
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=True)


def _plasma(count: int, size: int, decay: float, generator: Generator) -> Tensor:
    """Clouds [count, size, size] from 0 to 1 that go on at their borders, by the diamond–square algorithm.

    Args:
        count: how many.
        size: a power of 2.
        decay: from each scale to the next one of half the size, the variations fall by its square.
        generator: of the variations.
    """
    heights, step, variation = torch.zeros(count, size, size), size, 1.0
    while step > 1:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 2)
        shape = tuple(corners.shape)
        centers, above, beside = (variation * _uniform(shape, generator) for _ in range(3))
        centers += (pairs + pairs.roll(-1, 1)) / 4
        above += (pairs + centers + centers.roll(1, 1)) / 4
        beside += (corners + corners.roll(-1, 1) + centers + centers.roll(1, 2)) / 4
        heights[:, half::step, half::step] = centers
        heights[:, ::step, half::step] = above
        heights[:, half::step, ::step] = beside
        step, variation = half, variation / decay**2
    lowest, highest = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return (heights - lowest) / (highest - lowest)


def _with_pillow(images: Tensor, function: Callable[[Image.Image], Image.Image]) -> Tensor:
    """A function of one Pillow image after the other."""
    pictures = (Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in images)
    changed = [torch.from_numpy(np.array(function(picture))) for picture in pictures]
    return torch.stack(changed).view(len(images), *images.shape[2:], -1).permute(0, 3, 1, 2).contiguous()
