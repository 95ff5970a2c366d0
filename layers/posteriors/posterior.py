"""What every posterior over a weight tensor is.

A layer keeps the posterior *mean* μ where `torch.nn` keeps the weight (`layer.weight`, `layer.bias`),
so initializers, checkpoints of deterministic twins and optimizers find it by its usual name. A
`Posterior` holds what is Bayesian about that tensor, its standard deviation and its prior; the mean is
passed to each of its methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import at_least_float32, normal_like


class Posterior(nn.Module):
    """A fully factorized normal around a mean that the layer keeps and passes in.

    A family defines `std`, `joint_kl` and `prior_follows`; the rest follows. Tensors have the shape of the weight.
    """

    @staticmethod
    def joint_kl(posteriors: Sequence[Any], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) in nats, summed over the weights of several posteriors of this family: a scalar."""
        raise NotImplementedError

    def std(self, mean: Tensor) -> Tensor:
        """Standard deviation of every weight."""
        raise NotImplementedError

    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """Set every σ to `ratio · |μ|`: MOPED's posterior (Krishnan et al. 2020, section 3)."""
        raise NotImplementedError

    @property
    def prior_follows(self) -> bool:
        """Whether the prior follows the posterior, so that no scale of the weights is preferred."""
        raise NotImplementedError

    def kl(self, mean: Tensor) -> Tensor:
        """KL(q‖p) in nats, summed over the weights: a scalar."""
        return self.joint_kl([self], [mean])

    def entropy(self, mean: Tensor) -> Tensor:
        """H(q) = Σ ½ log(2πeσ²) in nats, summed over the weights: a scalar."""
        return at_least_float32(self.std(mean)).log().sum() + 0.5 * math.log(2 * math.pi * math.e) * mean.numel()

    def variance(self, mean: Tensor) -> Tensor:
        """Variance of every weight."""
        return self.std(mean).square()

    def perturbation(self, mean: Tensor) -> Tensor:
        """A draw from q minus its mean."""
        return self.std(mean) * normal_like(mean)

    def sample(self, mean: Tensor) -> Tensor:
        """A draw from q, differentiable in the mean and the standard deviation (Kingma & Welling 2014)."""
        return torch.addcmul(mean, self.std(mean), normal_like(mean))


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of `shape` broadcasts to the shape `to` without widening it."""
    try:
        return torch.broadcast_shapes(tuple(shape), to) == to
    except (RuntimeError, TypeError):
        return False
