"""The architectures, each written once and built in two families: Bayesian and deterministic.

An architecture is a function that takes the layer classes and returns the layers by name, so a Bayesian network and
its frequentist twin cannot drift apart. All take images [n, inputs, height, width], and every layer has a bias. Of
images that are not 32×32, the last feature maps are averaged, or repeated, to the grid that those of 32×32 have
(adaptive average pooling), so that a network has the same parameters at every size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from layers import BayesianLayer, BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper

Size = tuple[int, int]  # height and width, in pixels
IMAGE_SIZE: Size = (32, 32)  # where nothing else is said
Make = Callable[..., nn.Module]  # a layer class, or one with some arguments bound
ACTIVATIONS: dict[str, type[nn.Module]] = {"softplus": nn.Softplus, "relu": nn.ReLU}


def _to_grid(side: int, image_size: Size) -> dict[str, nn.Module]:
    """Nothing for images of 32×32; else the pooling that makes the last feature maps of others as large as theirs."""
    return {} if image_size == IMAGE_SIZE else {"resize": nn.AdaptiveAvgPool2d(side)}


def lenet(
    conv: Make, linear: Make, activation: Make, outputs: int, inputs: int, image_size: Size = IMAGE_SIZE
) -> dict[str, nn.Module]:
    """LeNet-5 (LeCun et al. 1998)."""
    return {
        "conv1": conv(inputs, 6, 5),
        "act1": activation(),
        "pool1": nn.MaxPool2d(2),
        "conv2": conv(6, 16, 5),
        "act2": activation(),
        "pool2": nn.MaxPool2d(2),
        **_to_grid(5, image_size),
        "flatten": FlattenLayer(16 * 5 * 5),
        "fc1": linear(16 * 5 * 5, 120),
        "act3": activation(),
        "fc2": linear(120, 84),
        "act4": activation(),
        "fc3": linear(84, outputs),
    }


def alexnet(
    conv: Make, linear: Make, activation: Make, outputs: int, inputs: int, image_size: Size = IMAGE_SIZE
) -> dict[str, nn.Module]:
    """AlexNet (Krizhevsky et al. 2012) cut down to 32×32 images, with one fully connected layer."""
    return {
        "conv1": conv(inputs, 64, 11, stride=4, padding=5),
        "act1": activation(),
        "pool1": nn.MaxPool2d(2),
        "conv2": conv(64, 192, 5, padding=2),
        "act2": activation(),
        "pool2": nn.MaxPool2d(2),
        "conv3": conv(192, 384, 3, padding=1),
        "act3": activation(),
        "conv4": conv(384, 256, 3, padding=1),
        "act4": activation(),
        "conv5": conv(256, 128, 3, padding=1),
        "act5": activation(),
        "pool3": nn.MaxPool2d(2),
        **_to_grid(1, image_size),
        "flatten": FlattenLayer(128),
        "fc": linear(128, outputs),
    }


def three_conv_three_fc(
    conv: Make, linear: Make, activation: Make, outputs: int, inputs: int, image_size: Size = IMAGE_SIZE
) -> dict[str, nn.Module]:
    """Three convolutions and three fully connected layers (Shridhar et al. 2019)."""
    return {
        "conv1": conv(inputs, 32, 5, padding=2),
        "act1": activation(),
        "pool1": nn.MaxPool2d(3, 2),
        "conv2": conv(32, 64, 5, padding=2),
        "act2": activation(),
        "pool2": nn.MaxPool2d(3, 2),
        "conv3": conv(64, 128, 5, padding=1),
        "act3": activation(),
        "pool3": nn.MaxPool2d(3, 2),
        **_to_grid(2, image_size),
        "flatten": FlattenLayer(128 * 2 * 2),
        "fc1": linear(128 * 2 * 2, 1000),
        "act4": activation(),
        "fc2": linear(1000, 1000),
        "act5": activation(),
        "fc3": linear(1000, outputs),
    }


Architecture = Callable[..., dict[str, nn.Module]]


def _activation(activation_type: str) -> type[nn.Module]:
    if activation_type not in ACTIVATIONS:
        raise ValueError(f"unknown activation_type {activation_type!r}: known are {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[activation_type]


class BayesianNetwork(ModuleWrapper):
    """An architecture with a posterior over every weight; a call returns (logits [n, outputs], kl).

    Args:
        outputs: number of classes.
        inputs: number of image channels.
        image_size: height and width of the images.
        priors: a dict with any of the fields of `layers.priors.Priors`.
        layer_type: 'lrt', 'bbb' or 'flipout'.
        activation_type: 'relu' or 'softplus'.
        posterior: the family, a key of `layers.FAMILIES`, or a dict of it and its options.
        alpha_shape: for the alpha posterior, a shape that broadcasts against every weight, such as (1, 1) for one α
            per weight tensor.
    """

    architecture: Architecture  # of a subclass

    def __init__(
        self,
        outputs: int,
        inputs: int,
        *,
        image_size: Size = IMAGE_SIZE,
        priors: Mapping[str, Any] | None = None,
        layer_type: str = "lrt",
        activation_type: str = "relu",
        posterior: str | Mapping[str, Any] = "gaussian",
        alpha_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = {"priors": priors, "layer_type": layer_type}
        settings |= {"posterior": posterior, "alpha_shape": alpha_shape}
        conv, linear = partial(BBBConv2d, **settings), partial(BBBLinear, **settings)
        activation = _activation(activation_type)
        children = type(self).architecture(conv, linear, activation, outputs, inputs, image_size)
        for name, child in children.items():
            self.add_module(name, child)
            if isinstance(child, BayesianLayer):
                child.name = name


class DeterministicNetwork(nn.Sequential):
    """An architecture as its frequentist twin; a call returns logits [n, outputs].

    Args:
        outputs: number of classes.
        inputs: number of image channels.
        activation_type: 'relu' or 'softplus'.
        image_size: height and width of the images.
    """

    architecture: Architecture  # of a subclass

    def __init__(self, outputs: int, inputs: int, activation_type: str = "relu", image_size: Size = IMAGE_SIZE) -> None:
        super().__init__()
        activation = _activation(activation_type)
        children = type(self).architecture(nn.Conv2d, nn.Linear, activation, outputs, inputs, image_size)
        for name, child in children.items():
            self.add_module(name, child)
