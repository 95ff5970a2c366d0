"""Networks that do not fit, for `--net_type own_factories:…`."""

from __future__ import annotations

from torch import nn


def of_one_argument(outputs: int) -> nn.Module:
    return nn.Linear(1, outputs)


def of_three_classes(outputs: int, inputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs * 32 * 32, 3))


def of_seven_channels(outputs: int, inputs: int) -> nn.Module:
    return nn.Conv2d(7, outputs, 32)


def not_flat(outputs: int, inputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1)
