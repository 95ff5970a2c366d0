"""Bayesian linear layer and embedding; for their arguments see `BayesianLayer`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .base import BayesianLayer


class BBBLinear(BayesianLayer, nn.Linear):
    """`nn.Linear` with a posterior over its weights. Input [..., in], output [..., out]."""

    @property
    def feature_axis(self) -> int:
        """The last axis."""
        return -1

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear`."""
        return F.linear(input, weight, bias)


class BBBEmbedding(BayesianLayer, nn.Embedding):
    """`nn.Embedding` with a posterior over its vectors. Input: indices [...]; output [..., embedding_dim].

    It is a linear layer of one-hot inputs, which equal their own squares. Under 'lrt' two occurrences of an
    index have independent noise; under 'bbb' they share one draw.

    Raises:
        ValueError: `padding_idx` or `max_norm` is given, which would fix some weights.
    """

    bias = None

    @staticmethod
    def obstacle(layer: Any) -> str | None:
        """Why this embedding cannot become Bayesian; None if it can."""
        if layer.padding_idx is None and layer.max_norm is None:
            return BayesianLayer.obstacle(layer)
        return "a Bayesian embedding has no padding_idx and no max_norm: mask the padding instead"

    @property
    def feature_axis(self) -> int:
        """The last axis."""
        return -1

    def squared(self, input: Tensor) -> Tensor:
        """The indices themselves: one-hot vectors equal their squares."""
        return input

    def flipped(self, input: Tensor) -> Tensor:
        """The indices themselves: the signs of the outputs are enough."""
        return input

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`F.embedding`: row i of the weight per index i."""
        return F.embedding(input, weight, None, None, 2.0, self.scale_grad_by_freq, self.sparse)
