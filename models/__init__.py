"""The networks, by name, in both families, and their checkpoints."""

from models.registry import FACTORIES, NETWORKS, build, file_name, known_net_type

__all__ = ["FACTORIES", "NETWORKS", "build", "file_name", "known_net_type"]
