"""The classification networks of torchvision, by its own names, for images of any channels and, mostly, any size."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from models.architectures import Size

NAMES = tuple(models.list_models(module=models))
SMALL = 64  # pixels of the shorter side below which a ResNet has a stem that keeps the resolution


class _ConstantsOnCpu(TorchFunctionMode):
    """Makes tensors of constants on the CPU: a RegNet computes its widths by them, which the meta device cannot."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.arange, torch.tensor):
            kwargs = {"device": "cpu", **(kwargs or {})}
        return func(*args, **(kwargs or {}))


def torchvision_network(name: str, outputs: int, inputs: int, image_size: Size) -> nn.Module:
    """A network of torchvision's, with fresh weights.

    A ResNet for images below 64 pixels has a first convolution of 3×3 with stride 1, and no pooling after it: its own
    stem would leave a quarter of 32×32. From 64 pixels on it is torchvision's, whose weights it takes.

    Args:
        name: one of `NAMES`.
        outputs: number of classes.
        inputs: number of image channels; the first convolution takes them.
        image_size: height and width of the images.

    Raises:
        ValueError: the network cannot be built for this size.
    """
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise ValueError(f"it takes square images, got {image_size[0]}×{image_size[1]}")
        patch = int(name.rpartition("_")[2])
        if image_size[0] % patch:
            raise ValueError(f"its patches are of {patch} pixels: give an image_size that is a multiple")
        options = {"image_size": image_size[0]}
    elif name == "maxvit_t":
        options = {"input_size": image_size}
    with _ConstantsOnCpu() if name.startswith("regnet") else nullcontext():
        net = models.get_model(name, weights=None, num_classes=outputs, **options)
    if inputs != 3:
        _take_channels(net, inputs)
    if isinstance(net, models.ResNet) and min(image_size) < SMALL:
        net.conv1 = nn.Conv2d(inputs, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    return net


def _take_channels(net: nn.Module, inputs: int) -> None:
    """Give a network a first convolution for other channels."""
    path, conv = next((path, layer) for path, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
    shape: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
    other = nn.Conv2d(inputs, conv.out_channels, **shape, bias=conv.bias is not None)
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, other)
