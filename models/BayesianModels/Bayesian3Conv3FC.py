"""Bayesian network of three convolutions and three fully connected layers."""

from models.architectures import BayesianNetwork, three_conv_three_fc


class BBB3Conv3FC(BayesianNetwork):
    """Three convolutions, three linear layers: see `models.architectures.three_conv_three_fc`."""

    architecture = staticmethod(three_conv_three_fc)
