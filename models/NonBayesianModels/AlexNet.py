"""Frequentist AlexNet for 32×32 images."""

from models.architectures import DeterministicNetwork, alexnet


class AlexNet(DeterministicNetwork):
    """Frequentist AlexNet for 32×32 images. See `models.architectures.alexnet`."""

    architecture = staticmethod(alexnet)
