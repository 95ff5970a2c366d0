"""Corruptions of images, for a test of what a network says about inputs that differ from its training data."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Images rotated counterclockwise about their centers with bilinear interpolation; the corners are filled with 0.

    Args:
        images: uint8 [n, channels, height, width].
        degrees: the angle.
    """
    return functional.rotate(images, degrees, InterpolationMode.BILINEAR) if degrees else images


def gaussian_noise(images: Tensor, std: float) -> Tensor:
    """Images with independent Gaussian noise added to every pixel, rounded and clamped to 0…255.

    Args:
        images: uint8 [n, channels, height, width].
        std: standard deviation of the noise, for pixels in [0, 1]; the noise is the same in every call, but for its
            scale.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * std * noise).clamp(0, 255).round().to(torch.uint8)
