"""Bayesian layers for sequences: a forward pass draws the weights once and uses them at every step.

Every argument, of the constructor and of a call, keeps its meaning of `torch.nn`; for the other arguments see
`BayesianLayer`. The only estimator is 'bbb'.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import DrawnLayer, bayesian_counterpart
from .BBBLinear import BBBLinear


class BBBLSTM(DrawnLayer, nn.LSTM):
    """`nn.LSTM` with a posterior over its weights."""


class BBBGRU(DrawnLayer, nn.GRU):
    """`nn.GRU` with a posterior over its weights."""


class BBBMultiheadAttention(DrawnLayer, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with a posterior over its projections; the output projection is a `BBBLinear`."""

    def make_bayesian(self, *arguments: Any) -> None:
        """Give every parameter its posterior, those of the output projection included."""
        super().make_bayesian(*arguments)
        *settings, name = arguments
        self._modules["out_proj"] = bayesian_counterpart(
            self.out_proj, BBBLinear, *settings, name and f"{name}.out_proj"
        )
