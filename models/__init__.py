"""The networks, by name, in both families."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.architectures import BayesianNetwork, DeterministicNetwork
from models.BayesianModels.Bayesian3Conv3FC import BBB3Conv3FC
from models.BayesianModels.BayesianAlexNet import BBBAlexNet
from models.BayesianModels.BayesianLeNet import BBBLeNet
from models.NonBayesianModels.AlexNet import AlexNet
from models.NonBayesianModels.LeNet import LeNet
from models.NonBayesianModels.ThreeConvThreeFC import ThreeConvThreeFC
from support import UserError, nearest

NETWORKS: dict[str, tuple[type[BayesianNetwork], type[DeterministicNetwork]]] = {
    "lenet": (BBBLeNet, LeNet),
    "alexnet": (BBBAlexNet, AlexNet),
    "3conv3fc": (BBB3Conv3FC, ThreeConvThreeFC),
}


def build(net_type: str, bayesian: bool, outputs: int, inputs: int, **settings: Any) -> nn.Module:
    """The network of that name and family; `settings` are the keyword arguments of its class.

    Raises:
        UserError: an unknown name (the known ones are listed), or settings that a layer refuses.
    """
    if net_type not in NETWORKS:
        near = nearest(net_type, NETWORKS)
        raise UserError(f"unknown net_type {net_type!r}: did you mean {near!r}? Known are {', '.join(NETWORKS)}")
    family = NETWORKS[net_type][0 if bayesian else 1]
    try:
        return family(outputs, inputs, **settings)
    except ValueError as error:
        raise UserError(f"{net_type} cannot be built with these settings: {error}") from error
