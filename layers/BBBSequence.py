"""Bayesian layers for sequences: a forward pass draws the weights once and uses them at every step.

Every argument, of the constructor and of a call, means what it means in `torch.nn`; the rest is told by
`layers.base.BayesianLayer`. Their one estimator is 'bbb'.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from layers.base import DrawnLayer, bayesian_form
from layers.BBBLinear import BBBLinear


class BBBLSTM(DrawnLayer, nn.LSTM):
    """`nn.LSTM` with a posterior over its weights."""


class BBBGRU(DrawnLayer, nn.GRU):
    """`nn.GRU` with a posterior over its weights."""


class BBBMultiheadAttention(DrawnLayer, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with a posterior over its projections; that of the output is a `BBBLinear`."""

    def make_bayesian(self, *arguments: Any) -> None:
        super().make_bayesian(*arguments)
        *settings, name = arguments
        self._modules["out_proj"] = bayesian_form(self.out_proj, BBBLinear, *settings, name and f"{name}.out_proj")
