"""Pruning: the weights that the posterior is least sure of are set to 0 (Blundell et al. 2015, section 5.1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from images import Split
from inference.classifier import Classifier
from inference.evaluation import split_scores
from inference.prediction import check_finite
from layers import AlphaPosterior, weight_posteriors

LOG_ALPHA = 3.0  # above it a weight of the alpha posterior is noise (Molchanov et al. 2017, section 4.3)
FRACTIONS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


@torch.no_grad()
def signal_to_noise(net: nn.Module) -> dict[str, Tensor]:
    """|μ| / σ of every Bayesian weight of `net`, by dotted name; for the alpha posterior that is α^−½.

    Raises:
        UserError: a parameter of the network is not finite.
    """
    check_finite(net, "the network")
    ratios = {}
    for name, mean, posterior in weight_posteriors(net):
        if isinstance(posterior, AlphaPosterior):
            ratios[name] = (-0.5 * posterior.log_alpha).exp().expand_as(mean).clone()
        else:
            signal = posterior.location(mean).abs()
            ratios[name] = (signal / posterior.std(mean)).masked_fill(signal == 0, 0.0)
    return ratios


def pruned(net: nn.Module, fraction: float | None = None, by_layer: bool = False) -> nn.Module:
    """A copy of `net` in which the weights with the smallest |μ|/σ are 0, with no variance.

    Args:
        net: a Bayesian network; it is not modified.
        fraction: how many of the weights, from 0 to 1; None for those with log α above 3, where α = σ²/μ².
        by_layer: the same fraction of every tensor rather than of all weights together.

    Raises:
        ValueError: `fraction` is out of range, or the network has no Bayesian layer.
        UserError: a parameter of the network is not finite.
    """
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be from 0 to 1, got {fraction}")
    ratios = signal_to_noise(net)
    if not ratios:
        raise ValueError("the network has no Bayesian layer, and so no signal-to-noise ratio")
    if fraction is None:
        dropped = {name: ratio < math.exp(-LOG_ALPHA / 2) for name, ratio in ratios.items()}
    elif by_layer:
        dropped = {name: _smallest(ratio.flatten(), fraction).view_as(ratio) for name, ratio in ratios.items()}
    else:
        flat = [ratio.flatten() for ratio in ratios.values()]
        masks = _smallest(torch.cat(flat), fraction).split([len(ratio) for ratio in flat])
        dropped = {name: mask.view_as(ratios[name]) for name, mask in zip(ratios, masks, strict=True)}
    smaller = copy.deepcopy(net)
    with torch.no_grad():
        for name, mean, posterior in weight_posteriors(smaller):
            mean[dropped[name]] = 0
            posterior.silence(dropped[name])
    return smaller


def sparsity(net: nn.Module) -> float:
    """The fraction of the Bayesian weights of `net` that are 0."""
    means = [mean for _, mean, _ in weight_posteriors(net)]
    return sum(int((mean == 0).sum()) for mean in means) / sum(mean.numel() for mean in means)


def default_fractions(net: nn.Module, chosen: float | None = None) -> list[float | None]:
    """The fractions of a pruning curve in rising order, `chosen` among them; for an alpha posterior also None.

    None stands for the weights with log α above 3, as in `pruned`.
    """
    fractions = sorted({*FRACTIONS, *([] if chosen is None else [chosen])})
    has_alpha = any(isinstance(module, AlphaPosterior) for module in net.modules())
    return [*fractions, None] if has_alpha else [*fractions]


def pruning_curve(
    classifier: Classifier,
    split: Split,
    fractions: Sequence[float | None] = FRACTIONS,
    by_layer: bool = False,
    num_samples: int = 25,
) -> Iterator[dict[str, Any]]:
    """The scores of a classifier on labelled images as more and more of its weights are pruned.

    Yields:
        One row per fraction, as soon as it is computed: `fraction`, `sparsity`, and the scores of `split_scores`.
    """
    for fraction in fractions:
        smaller = replace(classifier, net=pruned(classifier.net, fraction, by_layer))
        yield {
            "fraction": fraction,
            "sparsity": sparsity(smaller.net),
            **split_scores(smaller, split, num_samples),
        }


def largest_fraction(curve: Sequence[dict[str, Any]], max_loss: float) -> float:
    """The largest fraction of a curve whose accuracy is at most `max_loss` below that of its first row."""
    lowest = curve[0]["accuracy"] - max_loss
    return max(row["fraction"] for row in curve if row["fraction"] is not None and row["accuracy"] >= lowest)


def _smallest(values: Tensor, fraction: float) -> Tensor:
    """True at this fraction of the values, the smallest ones."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[values.argsort()[: round(fraction * len(values))]] = True
    return mask
