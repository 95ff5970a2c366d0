"""Frequentist LeNet-5."""

from models.architectures import DeterministicNetwork, lenet


class LeNet(DeterministicNetwork):
    """Frequentist LeNet-5. See `models.architectures.lenet`."""

    architecture = staticmethod(lenet)
