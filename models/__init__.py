"""The networks, by name, in both families, and their checkpoints."""

from models.architectures import ACTIVATIONS, IMAGE_SIZE, BayesianNetwork, DeterministicNetwork, Size
from models.checkpoint import (
    FORMAT,
    Description,
    SavedNetwork,
    check_image_size,
    check_settings,
    load_network,
    read_checkpoint,
    restore_network,
    save_network,
    write_checkpoint,
)
from models.registry import FACTORIES, KNOWN, NETWORKS, build, check_net_type, file_name
from models.unet import UNet

__all__ = [
    "ACTIVATIONS",
    "FACTORIES",
    "FORMAT",
    "IMAGE_SIZE",
    "KNOWN",
    "NETWORKS",
    "BayesianNetwork",
    "Description",
    "DeterministicNetwork",
    "SavedNetwork",
    "Size",
    "UNet",
    "build",
    "check_image_size",
    "check_net_type",
    "check_settings",
    "file_name",
    "load_network",
    "read_checkpoint",
    "restore_network",
    "save_network",
    "write_checkpoint",
]
