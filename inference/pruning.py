"""Weights that the posterior itself is not sure of are set to 0 (Blundell et al. 2015, section 5.1)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from layers import AlphaPosterior, GaussianPosterior, weight_posteriors
from layers.kernels import RHO_FLOOR

LOG_ALPHA = 3.0  # above it a weight of the alpha posterior is noise (Molchanov et al. 2017, section 4.3)


@torch.no_grad()
def signal_to_noise(net: nn.Module) -> dict[str, Tensor]:
    """|μ| / σ of every Bayesian weight of `net`, by dotted name; of the alpha posterior that is α^−½."""
    found = {}
    for name, mean, posterior in weight_posteriors(net):
        if isinstance(posterior, AlphaPosterior):
            found[name] = (-0.5 * posterior.log_alpha).exp().expand_as(mean).clone()
        else:
            found[name] = mean.abs() / posterior.std(mean)
    return found


def pruned(net: nn.Module, fraction: float | None = None, by_layer: bool = False) -> nn.Module:
    """A copy of `net` in which the weights of least |μ|/σ are 0, with no variance.

    Args:
        fraction: how many of the weights, from 0 to 1; None for those with log α above 3, where α = σ²/μ².
        by_layer: the same fraction of every tensor rather than of all weights together.

    Raises:
        ValueError: `fraction` out of range, or a network without Bayesian layers.
    """
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be from 0 to 1, got {fraction}")
    ratios = signal_to_noise(net)
    if not ratios:
        raise ValueError("the network has no Bayesian layer, and so no signal-to-noise ratio")
    if fraction is None:
        dropped = {name: ratio < math.exp(-LOG_ALPHA / 2) for name, ratio in ratios.items()}
    elif by_layer:
        dropped = {name: _least(ratio.flatten(), fraction).view_as(ratio) for name, ratio in ratios.items()}
    else:
        rows = [ratio.flatten() for ratio in ratios.values()]
        parts = _least(torch.cat(rows), fraction).split([len(row) for row in rows])
        dropped = {name: part.view_as(ratios[name]) for name, part in zip(ratios, parts, strict=True)}
    smaller = copy.deepcopy(net)
    with torch.no_grad():
        for name, mean, posterior in weight_posteriors(smaller):
            mean[dropped[name]] = 0
            if isinstance(posterior, GaussianPosterior):
                posterior.rho[dropped[name]] = RHO_FLOOR  # the alpha posterior's σ is 0 where μ is
    return smaller


def sparsity(net: nn.Module) -> float:
    """The fraction of the Bayesian weights of `net` that are 0."""
    means = [mean for _, mean, _ in weight_posteriors(net)]
    return sum(int((mean == 0).sum()) for mean in means) / sum(mean.numel() for mean in means)


def _least(values: Tensor, fraction: float) -> Tensor:
    """True at the `fraction` of the values that are least."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.argsort()[: round(fraction * len(values))]] = True
    return chosen
