"""A small U-Net for maps: one class, or one number, per pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS, WIDTH = 3, 16  # resolutions, and channels at the highest one; each lower one has twice as many


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) of three resolutions and 117,000 parameters, without normalization layers.

    Images of any size from 4×4 on: they are padded with 0 to a multiple of 4, and the maps are cut to their size.

    Args:
        outputs: channels of the maps, one per class.
        inputs: number of image channels.
        width: channels at the highest resolution.
    """

    def __init__(self, outputs: int, inputs: int, width: int = WIDTH) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            _two_convolutions(before, after) for before, after in zip([inputs, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(2 * channels, channels, 2, 2) for channels in reversed(widths[:-1])
        )
        self.up = nn.ModuleList(_two_convolutions(2 * channels, channels) for channels in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[n, inputs, height, width] to [n, outputs, height, width]."""
        height, width = images.shape[-2:]
        multiple = 2 ** (LEVELS - 1)
        below, right = -height % multiple, -width % multiple
        maps = F.pad(images, (0, right, 0, below))
        skipped = []
        for index, block in enumerate(self.down):
            maps = block(self.pool(maps) if index else maps)
            skipped.append(maps)
        for enlarge, block, earlier in zip(self.enlarge, self.up, skipped[-2::-1], strict=True):
            maps = block(torch.cat([earlier, enlarge(maps)], 1))
        return F.pad(self.head(maps), (0, -right, 0, -below))  # a slice could not be exported for any size


def _two_convolutions(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()
    )
