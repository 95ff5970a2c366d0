"""The networks by name, in both families, and users' factories."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from layers import ModuleWrapper, to_bayesian, weight_posteriors
from models.architectures import IMAGE_SIZE, BayesianNetwork, DeterministicNetwork, Size
from models.BayesianModels.Bayesian3Conv3FC import BBB3Conv3FC
from models.BayesianModels.BayesianAlexNet import BBBAlexNet
from models.BayesianModels.BayesianLeNet import BBBLeNet
from models.NonBayesianModels.AlexNet import AlexNet
from models.NonBayesianModels.LeNet import LeNet
from models.NonBayesianModels.ThreeConvThreeFC import ThreeConvThreeFC
from models.torchvision_networks import NAMES, torchvision_network
from models.unet import UNet
from support import UserError, first_line, nearest

NETWORKS: dict[str, tuple[type[BayesianNetwork], type[DeterministicNetwork]]] = {
    "lenet": (BBBLeNet, LeNet),
    "alexnet": (BBBAlexNet, AlexNet),
    "3conv3fc": (BBB3Conv3FC, ThreeConvThreeFC),
}
FACTORIES: dict[str, Callable[[int, int, Size], nn.Module]] = {
    "unet": lambda outputs, inputs, image_size: UNet(outputs, inputs)
} | {name: partial(torchvision_network, name) for name in NAMES if name not in NETWORKS}
KNOWN = f"{', '.join(NETWORKS)}, unet (for segmentation), resnet18 or another of torchvision's classification networks"
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # package.module:factory


def check_net_type(net_type: object) -> str:
    """Check the name of a network.

    Returns:
        `net_type`, if it is a key of `NETWORKS` or `FACTORIES` or has the form `package.module:factory`.

    Raises:
        ValueError: it is neither; the message says what is expected.
    """
    names = (*NETWORKS, *FACTORIES)
    if isinstance(net_type, str) and (net_type in names or _IMPORT_PATH.fullmatch(net_type)):
        return net_type
    raise ValueError(f"one of {KNOWN} (did you mean {nearest(net_type, names)!r}?), or package.module:factory")


def file_name(net_type: str) -> str:
    """What files and folders of a network are called; a colon is not allowed in file names on Windows."""
    return net_type.replace(":", ".")


def build(
    net_type: str, bayesian: bool, outputs: int, inputs: int, *, image_size: Size = IMAGE_SIZE, **settings: Any
) -> nn.Module:
    """Build a network by its name.

    A factory, `package.module:factory`, is a function of (outputs, inputs) that returns a deterministic network
    of images [n, inputs, height, width], which becomes Bayesian by `to_bayesian` where that is wanted; or a Bayesian
    network with settings of its own, whose call returns (logits, kl).

    Args:
        net_type: a key of `NETWORKS` or `FACTORIES`, or `package.module:factory`.
        bayesian: the Bayesian network, or its frequentist twin.
        outputs: number of classes.
        inputs: number of image channels.
        image_size: height and width of the images.
        settings: for a key of `NETWORKS`, the keyword arguments of its class; for a factory, those of `to_bayesian`
            (its activations are its own, so that `activation_type` must be 'relu' or absent). With `layers`, a
            selection as for `to_bayesian`, a key of `NETWORKS` too becomes Bayesian by that function.

    Raises:
        UserError: an unknown name (the known ones are listed), a factory that cannot be imported or fails, or
            settings that a layer refuses.
    """
    try:
        check_net_type(net_type)
    except ValueError as error:
        raise UserError(f"unknown net_type {net_type!r}: expected {error}") from error
    try:
        if net_type in NETWORKS and settings.get("layers", "all") == "all":
            settings.pop("layers", None)
            return NETWORKS[net_type][0 if bayesian else 1](outputs, inputs, image_size=image_size, **settings)
        return _build_by_factory(net_type, bayesian, outputs, inputs, image_size, **settings)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{net_type} cannot be built with these settings: {error}") from error


def _build_by_factory(
    net_type: str, bayesian: bool, outputs: int, inputs: int, image_size: Size, **settings: Any
) -> nn.Module:
    activation_type = settings.pop("activation_type", "relu")
    if net_type in NETWORKS:
        net: Any = NETWORKS[net_type][1](outputs, inputs, activation_type, image_size)
    elif activation_type != "relu":
        raise ValueError("activation_type does not apply, the network has its own")
    else:
        net = _call_factory(net_type, outputs, inputs, image_size)
    if not isinstance(net, nn.Module):
        raise ValueError(f"expected an nn.Module, got {net!r}")
    if not any(True for _ in weight_posteriors(net)):
        return ModuleWrapper(to_bayesian(net, inplace=True, **settings)) if bayesian else net
    if bayesian:
        own = {"alpha_shape": None, "posterior": "gaussian", "layers": "all"}
        given = [name for name, default in own.items() if settings.get(name, default) != default]
        if given:
            raise ValueError(f"{' and '.join(given)} cannot apply, the network has Bayesian layers of its own")
        return net
    raise ValueError("its layers are Bayesian already: train it with main_bayesian.py")


def _call_factory(net_type: str, outputs: int, inputs: int, image_size: Size) -> Any:
    if net_type in FACTORIES:
        return FACTORIES[net_type](outputs, inputs, image_size)
    factory = _find_factory(net_type)
    try:
        return factory(outputs, inputs)
    except Exception as error:
        raise UserError(f"{net_type}({outputs}, {inputs}) failed: {first_line(error)}") from error


def _find_factory(net_type: str) -> Callable[[int, int], Any]:
    module, name = net_type.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        is_inside = isinstance(error, ModuleNotFoundError) and not module.startswith(error.name or module)
        advice = "install it" if is_inside else "give it as package.module:function"
        raise UserError(f"net_type {net_type!r}: {error}: {advice}") from error
