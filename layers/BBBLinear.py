"""Bayesian linear layer and embedding; what their arguments mean is told by `layers.base.BayesianLayer`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from layers.base import BayesianLayer


class BBBLinear(BayesianLayer, nn.Linear):
    """`nn.Linear` with a posterior over its weights. Input [..., in], output [..., out]."""

    @property
    def feature_axis(self) -> int:
        return -1

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)


class BBBEmbedding(BayesianLayer, nn.Embedding):
    """`nn.Embedding` with a posterior over its vectors. Input [...] of indices, output [..., embedding_dim].

    It is a linear layer of one-hot inputs, which are their own squares. Under 'lrt' the noise of two
    occurrences of an index is independent; under 'bbb' they share one draw.

    Raises:
        ValueError: with `padding_idx` or `max_norm`, which make constants of weights.
    """

    bias = None

    @staticmethod
    def refusal(layer: Any) -> str | None:
        if layer.padding_idx is None and layer.max_norm is None:
            return BayesianLayer.refusal(layer)
        return "a Bayesian embedding has no padding_idx and no max_norm: mask what is padding instead"

    @property
    def feature_axis(self) -> int:
        return -1

    def squared(self, input: Tensor, unit: float = 1.0) -> Tensor:
        return input

    def flipped(self, input: Tensor) -> Tensor:
        return input

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(input, weight, None, None, 2.0, self.scale_grad_by_freq, self.sparse)
