"""What a first layer knows of images before it has seen a label: the second moments of the patches that it sees."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .priors import CorrelatedGaussianPrior


def patch_moments(layer: Any, inputs: Tensor) -> Tensor:
    """The second moments C of the patches of `inputs` that a layer's weight is multiplied with.

    Args:
        layer: a linear layer or a convolution without groups, Bayesian or not.
        inputs: [n, ...], what the layer sees in training.

    Returns:
        [d, d] in float64, d the number of weights per output; divided by its mean eigenvalue.

    Raises:
        ValueError: another layer.
    """
    is_known = isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if not is_known or getattr(layer, "groups", 1) != 1:
        raise ValueError(f"patches are those of a linear layer or a convolution without groups, not of {layer}")
    size = math.prod(layer.weight.shape[1:])
    second = torch.zeros(size, size, dtype=torch.float64, device=inputs.device)
    identity = torch.eye(size, dtype=inputs.dtype, device=inputs.device)
    single = identity.view(size, *layer.weight.shape[1:])  # one filter per patch element
    for batch in inputs.detach().split(32):
        patches = _outputs(layer, batch, single).movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
        second += (patches @ patches.mT).double()
    return second / second.diagonal().mean()


def _outputs(layer: Any, inputs: Tensor, weight: Tensor) -> Tensor:
    """Those of the layer with another weight and without a bias."""
    if hasattr(layer, "operation"):  # a Bayesian layer
        outputs: Tensor = layer.operation(inputs, weight, None)
        return outputs
    bias = {} if layer.bias is None else {"bias": weight.new_zeros(len(weight))}
    return functional_call(layer, {"weight": weight, **bias}, (inputs,))


def patch_prior(layer: Any, inputs: Tensor, strength: float, ridge: float = 1e-3) -> CorrelatedGaussianPrior:
    """The empirical-covariance prior N(0, (C + ridge·I)/strength) of a first layer (Izmailov et al. 2021, section 6).

    Directions that no training image has, such as those of pixel noise, have almost no weight under the prior and add
    little to the outputs when they come; under an independent prior the data leave such weights as they were.

    Args:
        layer: a Bayesian linear layer or convolution without groups; the prior is for its weight.
        inputs: [n, ...], what the layer sees in training.
        strength: the larger, the nearer to 0 the prior holds the weights.
        ridge: the variance, over the mean eigenvalue of C, of a direction that no input has.

    Returns:
        For `layer.posterior["weight"].prior`.

    Raises:
        ValueError: another layer, or `strength` or `ridge` is not above 0.
    """
    if not (strength > 0 and ridge > 0):
        raise ValueError(f"strength and ridge must be above 0, got {strength} and {ridge}")
    second = patch_moments(layer, inputs)
    covariance = (second + ridge * torch.eye(len(second), dtype=second.dtype, device=second.device)) / strength
    return CorrelatedGaussianPrior(covariance.to(layer.weight), layer.weight.shape[1:])


@torch.no_grad()
def start_as_patches(layer: Any, inputs: Tensor) -> None:
    """Give a first layer's random weights w the second moments of what it sees: w ← a C^½ w.

    The gradient of a filter is a sum of patches, so that whatever it starts with in a direction that no patch has stays
    there, and answers to pixel noise when that comes. C^½ w has next to nothing in these directions. Of independent
    weights of variance v, outputs have the mean square v tr C; a = √(tr C / tr C²) keeps it.

    Args:
        layer: a linear layer or a convolution without groups, Bayesian (then these are its means) or not.
        inputs: [n, ...], what the layer sees in training.

    Raises:
        ValueError: another layer.
    """
    second = patch_moments(layer, inputs)
    values, vectors = torch.linalg.eigh(second)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    scale = (second.trace() / second.square().sum()).sqrt()
    weight = layer.weight
    weight.copy_((scale * weight.flatten(1).double() @ root).view_as(weight))
