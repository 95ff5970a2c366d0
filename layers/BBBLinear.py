"""Bayesian linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from layers.base import BayesianLayer
from layers.posterior import Priors


class BBBLinear(BayesianLayer, nn.Linear):  # type: ignore[misc]  # torch declares a bias that may be None a Tensor
    """`nn.Linear` with a posterior over its weights; every argument of `nn.Linear` means what it means there.

    Args:
        alpha_shape: shape of log α for the alpha posterior N(μ, αμ²), broadcast against the weight
            [out, in]; None for the Gaussian posterior N(μ, softplus(ρ)²).
        priors: a dict with any of the fields of `layers.posterior.Priors`.
        layer_type: 'lrt', 'bbb' or 'flipout' (see `layers.estimators`).
        name: what recordings call the layer.

    Shapes: input [..., in]; output [..., out].

    Raises:
        ValueError: an `alpha_shape`, `priors` or `layer_type` that does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        alpha_shape: Sequence[int] | None = None,
        priors: Priors | Mapping[str, Any] | None = None,
        layer_type: str = "lrt",
        name: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.make_bayesian(alpha_shape, priors, layer_type, name)

    @property
    def feature_axis(self) -> int:
        return -1

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)
