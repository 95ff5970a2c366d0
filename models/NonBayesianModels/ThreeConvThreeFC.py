"""Frequentist network of three convolutions and three fully connected layers."""

from models.architectures import DeterministicNetwork, three_conv_three_fc


class ThreeConvThreeFC(DeterministicNetwork):
    """Frequentist network of three convolutions and three fully connected layers. See `models.architectures.three_conv_three_fc`."""

    architecture = staticmethod(three_conv_three_fc)
