"""Regression: the posterior predictive of a network with a Gaussian likelihood."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from inference.distributions import refuse_distribution
from inference.prediction import check_method, posterior_outputs
from likelihoods import GaussianLikelihood, RegressionPredictive
from moments import Propagation


def regression_predictive(
    net: nn.Module,
    likelihood: GaussianLikelihood,
    inputs: Tensor,
    num_samples: int = 100,
    batch_size: int = 1024,
    seed: int = 0,
    *,
    method: str = "draws",
) -> RegressionPredictive:
    """Mean and variances of y over draws from the posterior, by the law of total variance.

    Args:
        net: a Bayesian or deterministic network.
        likelihood: what turns its outputs into means and noise variances.
        inputs: [n, ...], as in training.
        num_samples: draws from the posterior.
        batch_size: examples per forward pass.
        seed: of the draws.
        method: 'draws', or 'moments' for a single pass (see `posterior_predictive`).

    Raises:
        ValueError: `num_samples` is below 1, or the method is unknown.
        UserError: by moments, the network is a `WeightDistribution`.
        MissingRuleError: by moments, the network has an operation without a rule.
    """
    check_method(method)
    with torch.no_grad():
        if method == "draws":
            return likelihood.summarize(posterior_outputs(net, inputs, num_samples, batch_size, seed))
        refuse_distribution(net)
        device, propagation = next(net.parameters(), inputs).device, Propagation(copy.deepcopy(net).eval())
        batches = (propagation.draws(batch.to(device)) for batch in inputs.split(batch_size))
        return RegressionPredictive.concatenate([likelihood.summarize(draws) for draws in batches])
