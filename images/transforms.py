"""From pixels to what a network takes: normalization and augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8192  # images that are normalized, and so float, at a time when predicting


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
