"""Bayesian AlexNet for 32×32 images."""

from models.architectures import BayesianNetwork, alexnet


class BBBAlexNet(BayesianNetwork):
    """Bayesian AlexNet for 32×32 images. See `models.architectures.alexnet`."""

    architecture = staticmethod(alexnet)
