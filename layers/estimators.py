"""How a forward pass of a Bayesian layer is sampled.

Each estimator is a function of a layer and its input and works with every posterior and operation: it
asks the layer for the moments or draws of its weights and for `operation(input, *weights, *more)`, the
deterministic map that the layer would be without uncertainty; `more` is what else its forward pass takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from layers.kernels import noisy, unit_of_squares

Weights = tuple[Tensor, Tensor | None]  # of weight and bias


class Estimable(Protocol):
    """What an estimator asks of a layer."""

    @property
    def feature_axis(self) -> int:
        """The axis of the features (channels), counted from the end: −1 for linear, −3 for conv2d."""
        ...

    def operation(self, input: Tensor, weight: Tensor, bias: Tensor | None, *more: Any) -> Tensor: ...
    def squared(self, input: Tensor, unit: float = 1.0) -> Tensor: ...
    def flipped(self, input: Tensor) -> Tensor: ...
    def means(self) -> Weights: ...
    def variances(self) -> Weights: ...
    def perturbations(self) -> Weights: ...
    def samples(self) -> Weights: ...


def lrt(layer: Estimable, input: Tensor, *more: Any) -> Tensor:
    """Local reparameterization: `op(x, μ) + sqrt(op(x², σ²)) ⊙ ε`, ε ~ N(0, 1) an output element.

    Kingma, Salimans & Welling 2015, eq. 6. The output of a linear layer has exactly this
    distribution. A convolution's outputs at two positions share a kernel and so are correlated under
    q; drawing ε for every element drops that covariance and keeps each element's own mean and
    variance. Squares are taken in units that keep inputs up to 1e22 finite in float32; in float16, whose range
    has no room to spare, they overflow beyond 255.
    """
    mean = layer.operation(input, *layer.means(), *more)
    unit = unit_of_squares(input)
    weight, bias = layer.variances()
    if bias is not None and unit != 1.0:
        bias = bias / unit**2
    variance = layer.operation(layer.squared(input, unit), weight, bias, *more)
    return noisy(mean, variance, unit)


def bbb(layer: Estimable, input: Tensor, *more: Any) -> Tensor:
    """Weight sampling: one draw w ~ q a forward pass, shared by the batch (Blundell et al. 2015, 3.2)."""
    return layer.operation(input, *layer.samples(), *more)


def flipout(layer: Estimable, input: Tensor, *more: Any) -> Tensor:
    """Flipout: `op(x, μ) + op(x ⊙ s, σ ⊙ ε) ⊙ r` (Wen et al. 2018, eq. 4).

    One ε a pass; signs s and r, one an example and feature, constant over positions: each example then
    sees its own exact draw `μ + σ ⊙ ε ⊙ r sᵀ` of the weights, independent in sign from its neighbour's.
    """
    mean = layer.operation(input, *layer.means(), *more)
    flipped = layer.operation(layer.flipped(input), *layer.perturbations(), *more)
    return mean + flipped * signs(flipped, layer.feature_axis)


def signs(like: Tensor, feature_axis: int) -> Tensor:
    """Random ±1, one for each example (axis 0) and feature, broadcast over the other axes of `like`."""
    kept = (0, like.dim() + feature_axis)
    shape = [size if axis in kept else 1 for axis, size in enumerate(like.shape)]
    return torch.randint(0, 2, shape, device=like.device).to(like.dtype).mul(2).sub(1)


Estimator = Callable[..., Tensor]  # of a layer, its input, and what else its operation takes
ESTIMATORS: dict[str, Estimator] = {"lrt": lrt, "bbb": bbb, "flipout": flipout}
