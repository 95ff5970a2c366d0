"""The networks, by name, in both families, and their checkpoints."""

from models.architectures import ACTIVATIONS, IMAGE_SIZE, BayesianNetwork, DeterministicNetwork
from models.checkpoint import (
    FORMAT,
    Description,
    SavedNetwork,
    check_settings,
    load_network,
    read_checkpoint,
    restore_network,
    save_network,
    write_checkpoint,
)
from models.registry import FACTORIES, NETWORKS, build, check_net_type, file_name

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
    "check_net_type",
    "check_settings",
    "file_name",
    "load_network",
    "read_checkpoint",
    "restore_network",
    "save_network",
    "write_checkpoint",
]
