"""Regression: the posterior predictive of a network with a Gaussian likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inference.prediction import posterior_outputs
from likelihoods import GaussianLikelihood, RegressionPredictive


def regression_predictive(
    net: nn.Module,
    likelihood: GaussianLikelihood,
    inputs: Tensor,
    num_samples: int = 100,
    batch_size: int = 1024,
    seed: int = 0,
) -> RegressionPredictive:
    """Mean and variances of y over draws from the posterior, by the law of total variance.

    Args:
        net: a Bayesian or deterministic network.
        likelihood: what turns its outputs into means and noise variances.
        inputs: [n, ...], as in training.
        num_samples: draws from the posterior.
        batch_size: examples per forward pass.
        seed: of the draws.

    Raises:
        ValueError: `num_samples` is below 1.
    """
    with torch.no_grad():
        outputs = posterior_outputs(net, inputs, num_samples, batch_size, seed)
        moments = [likelihood.moments(output) for output in outputs]
        means, variances = (torch.stack(samples).cpu() for samples in zip(*moments, strict=True))
        return RegressionPredictive(means.mean(0), variances.mean(0), means.var(0, correction=0))
