"""Bayesian LeNet-5."""

from models.architectures import BayesianNetwork, lenet


class BBBLeNet(BayesianNetwork):
    """Bayesian LeNet-5. See `models.architectures.lenet`."""

    architecture = staticmethod(lenet)
