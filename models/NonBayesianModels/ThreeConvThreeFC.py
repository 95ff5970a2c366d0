"""Frequentist network of three convolutions and three fully connected layers."""

from models.architectures import DeterministicNetwork, three_conv_three_fc


class ThreeConvThreeFC(DeterministicNetwork):
    """Three convolutions, three linear layers: see `models.architectures.three_conv_three_fc`."""

    architecture = staticmethod(three_conv_three_fc)
