"""The three architectures built from the layers of several libraries, and a training step for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ACTIVATIONS, NETWORKS, build
from training import IVON

CLASSES, CHANNELS = 10, 3
TWIN, BY_IVON = "frequentist twin", "bbb, IVON"
TRAIN_SIZE = 54_000
Build = Callable[[str, str, int], nn.Module]  # net_type, activation_type, channels
Kl = Callable[[nn.Module], Tensor]


def _this_project(bayesian: bool, **settings: Any) -> tuple[Build, None]:
    """This project's networks, whose call returns the KL; the frequentist twin has none."""

    def network(net_type: str, activation: str, channels: int) -> nn.Module:
        return build(net_type, bayesian, CLASSES, channels, activation_type=activation, **settings)

    return network, None


def _architectures_of(conv: Callable[..., nn.Module], linear: Callable[..., nn.Module]) -> Build:
    """This project's architectures with another library's convolution and linear layers."""

    def network(net_type: str, activation: str, channels: int) -> nn.Module:
        architecture = NETWORKS[net_type][1].architecture
        return nn.Sequential(*architecture(conv, linear, ACTIVATIONS[activation], CLASSES, channels).values())

    return network


def _torchbnn() -> tuple[Build, Kl]:
    library = importlib.import_module("torchbnn")
    kl = library.BKLLoss(reduction="sum", last_layer_only=False)
    return _architectures_of(partial(library.BayesConv2d, 0, 1), partial(library.BayesLinear, 0, 1)), kl


def _bayesian_torch(kind: str) -> tuple[Build, Kl]:
    layers = importlib.import_module("bayesian_torch.layers")
    kl = importlib.import_module("bayesian_torch.models.dnn_to_bnn").get_kl_loss

    def without_kl(layer_class: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def make(*args: Any, **kwargs: Any) -> nn.Module:
            layer: Any = layer_class(*args, **kwargs)
            layer.dnn_to_bnn_flag = True  # a call then returns the output without the KL
            return layer

        return make

    conv, linear = (without_kl(getattr(layers, f"{name}{kind}")) for name in ("Conv2d", "Linear"))
    return _architectures_of(conv, linear), kl


def _blitz() -> tuple[Build, Kl]:
    modules = importlib.import_module("blitz.modules")
    kl = importlib.import_module("blitz.losses").kl_divergence_from_nn

    def conv(inputs: int, outputs: int, kernel: int, **settings: Any) -> nn.Module:
        return modules.BayesianConv2d(inputs, outputs, (kernel, kernel), **settings)

    return _architectures_of(conv, modules.BayesianLinear), kl


def _torch_uncertainty() -> tuple[Build, Kl]:
    layers = importlib.import_module("torch_uncertainty.layers.bayesian")
    kl = importlib.import_module("torch_uncertainty.losses").KLDiv
    return _architectures_of(layers.BayesConv2d, layers.BayesLinear), lambda net: kl(net)().sum()


CONTENDERS: dict[str, Callable[[], tuple[Build, Kl | None]]] = {
    TWIN: partial(_this_project, False),
    "lrt": partial(_this_project, True, layer_type="lrt"),
    "bbb": partial(_this_project, True, layer_type="bbb"),
    BY_IVON: partial(_this_project, True, layer_type="bbb"),
    "flipout": partial(_this_project, True, layer_type="flipout"),
    "lrt, alpha": partial(_this_project, True, layer_type="lrt", alpha_shape=(1, 1)),
    "bbb, alpha": partial(_this_project, True, layer_type="bbb", alpha_shape=(1, 1)),
    "flipout, alpha": partial(_this_project, True, layer_type="flipout", alpha_shape=(1, 1)),
    "torchbnn": _torchbnn,
    "bayesian-torch, reparameterization": partial(_bayesian_torch, "Reparameterization"),
    "bayesian-torch, flipout": partial(_bayesian_torch, "Flipout"),
    "blitz": _blitz,
    "torch-uncertainty": _torch_uncertainty,
}


def training_step(
    name: str,
    net_type: str,
    activation: str,
    batch: int,
    compiled: bool = False,
    channels: int = CHANNELS,
    layout: torch.memory_format = torch.contiguous_format,
) -> Callable[[], None]:
    """A function that takes one training step: forward, KL, backward and fused Adam, always on the same random batch.

    IVON takes the place of both the KL and Adam where the name says so.

    Args:
        name: a key of `CONTENDERS`.
        net_type: a key of `NETWORKS`.
        activation: a key of `ACTIVATIONS`.
        batch: images per step.
        compiled: run the forward and backward pass through `torch.compile`.
        channels: channels of the 32×32 images.
        layout: memory format of the weights and images.

    Raises:
        ImportError: the library is not installed.
    """
    make, kl = CONTENDERS[name]()
    torch.manual_seed(0)
    net = make(net_type, activation, channels).to(memory_format=layout).train()
    by_ivon = name == BY_IVON
    optimizer: torch.optim.Optimizer
    if by_ivon:
        optimizer = IVON(net, 0.1, TRAIN_SIZE, beta=0.1)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(net, options={"fallback_random": True}) if compiled else net
    images, labels = torch.randn(batch, channels, 32, 32).to(memory_format=layout), torch.randint(CLASSES, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = forward(images)
        logits, penalty = output if isinstance(output, tuple) else (output, None if kl is None else kl(net))
        loss = F.cross_entropy(logits, labels)
        if penalty is not None and not by_ivon:
            loss = loss + penalty.sum() * (0.1 / TRAIN_SIZE)
        loss.backward()
        optimizer.step()

    return step
