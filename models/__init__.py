"""The networks, by name, in both families, and their checkpoints."""

from models.architectures import ACTIVATIONS, IMAGE_SIZE, BayesianNetwork, DeterministicNetwork
from models.checkpoint import (
    FORMAT,
    Description,
    SavedNetwork,
    load_network,
    network_in,
    read_checkpoint,
    save_network,
    write_checkpoint,
)
from models.registry import FACTORIES, NETWORKS, build, file_name, known_net_type

__all__ = [
    "ACTIVATIONS",
    "FACTORIES",
    "FORMAT",
    "IMAGE_SIZE",
    "NETWORKS",
    "BayesianNetwork",
    "Description",
    "DeterministicNetwork",
    "SavedNetwork",
    "build",
    "file_name",
    "known_net_type",
    "load_network",
    "network_in",
    "read_checkpoint",
    "save_network",
    "write_checkpoint",
]
