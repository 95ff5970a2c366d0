"""How a forward pass of a Bayesian layer is sampled.

An estimator is a function of a layer and its input. It works with every posterior and every operation: it takes
the moments or a draw of the layer's weights and calls `operation(input, *weights, *more)`, the map that the layer
would be without uncertainty. `more` stands for the further arguments of the layer's forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .kernels import noisy

if TYPE_CHECKING:
    from .base import BayesianLayer

Weights = tuple[Tensor, Tensor | None]  # weight and bias


def output_moments(layer: BayesianLayer, input: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
    """Mean `op(x, μ)` and variance `op(x², σ²)` of every output.

    They are exact for weights that are uncorrelated under q (Kingma, Salimans & Welling 2015, eq. 6).
    """
    mean = layer.operation(input, *layer.means(), *more)
    return mean, layer.operation(layer.squared(input), *layer.variances(), *more)


def lrt(layer: BayesianLayer, input: Tensor, *more: Any) -> Tensor:
    """Local reparameterization: `op(x, μ) + sqrt(op(x², σ²)) ⊙ ε`, ε ~ N(0, 1) per output element.

    Kingma, Salimans & Welling 2015, eq. 6. The output of a linear layer has exactly this
    distribution. A convolution's outputs at two positions share a kernel and so are correlated under
    q; drawing ε per element drops that covariance and keeps each element's own mean and
    variance. Inputs are squared, so they must stay below 1e19 in float32 and 255 in float16.
    """
    return noisy(*output_moments(layer, input, *more))


def bbb(layer: BayesianLayer, input: Tensor, *more: Any) -> Tensor:
    """Weight sampling: one draw w ~ q per forward pass, shared by the batch (Blundell et al. 2015, 3.2)."""
    return layer.operation(input, *layer.samples(), *more)


def flipout(layer: BayesianLayer, input: Tensor, *more: Any) -> Tensor:
    """Flipout: `op(x, μ) + op(x ⊙ s, σ ⊙ ε) ⊙ r` (Wen et al. 2018, eq. 4).

    One ε per pass; one random sign in s and in r per example and feature, constant over positions. Each example
    then sees its own exact draw `μ + σ ⊙ ε ⊙ r sᵀ` of the weights, and the draws of two examples are uncorrelated.
    """
    mean = layer.operation(input, *layer.means(), *more)
    perturbation = layer.operation(layer.flipped(input), *layer.perturbations(), *more)
    return mean + perturbation * layer.signs(perturbation)


def random_signs(like: Tensor, feature_axis: int) -> Tensor:
    """Random ±1 per example (axis 0) and feature, broadcast over the other axes of `like`."""
    axes = (0, like.dim() + feature_axis)
    shape = [size if axis in axes else 1 for axis, size in enumerate(like.shape)]
    return torch.randint(0, 2, shape, device=like.device).to(like.dtype).mul(2).sub(1)


Estimator = Callable[..., Tensor]  # of a layer, its input, and the further arguments of its operation
ESTIMATORS: dict[str, Estimator] = {"lrt": lrt, "bbb": bbb, "flipout": flipout}
