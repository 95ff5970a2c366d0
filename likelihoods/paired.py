"""Whether one network is better than another on the same images: a test for accuracy, an interval for the NLL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from likelihoods.classification import Predictive

RESAMPLES = 2000


def mcnemar(wrong: Tensor, other_wrong: Tensor) -> float:
    """The two-sided p-value of McNemar's exact test that two networks have the same error rate.

    Of the images that only one of them gets wrong, each network has as many as the other by chance: a binomial
    distribution with p = ½ (McNemar 1947).

    Args:
        wrong: bool [n], whether the prediction of the one is wrong.
        other_wrong: bool [n], that of the other, for the same images.
    """
    only_one, only_other = int((wrong & ~other_wrong).sum()), int((other_wrong & ~wrong).sum())
    differing = only_one + only_other
    ways = tail = 1  # whole numbers, however many digits they have
    for count in range(min(only_one, only_other)):
        ways = ways * (differing - count) // (count + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**differing)


def bootstrap_interval(differences: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The interval in which the mean of paired differences lies, by resampling the images (Efron 1979).

    Args:
        differences: [n], one per image.
        level: of confidence.

    Returns:
        The quantiles of 2,000 resampled means, always by the same random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    count = len(differences)
    values = differences.double()
    resamples = (torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLES))
    means = torch.stack([values[resample].mean() for resample in resamples])
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype)).tolist()
    return low, high


def image_losses(predictive: Predictive, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per image, whether the prediction is wrong, bool [n], and its negative log-likelihood in nats, float64 [n].

    Args:
        predictive: of n images.
        labels: [n].
    """
    return predictive.labels != labels, -predictive.log_probs.double().gather(1, labels[:, None])[:, 0]


def paired_gains(
    losses: Sequence[tuple[Tensor, Tensor]], other_losses: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """How much better networks are than as many others, each than the one at its place, on the same images.

    Args:
        losses: `image_losses` per network.
        other_losses: those of the others.

    Returns:
        accuracy_gain: the accuracy of the ones less that of the others, a mean over networks.
        mcnemar_p: of `mcnemar`, one per network.
        nll_gain: the NLL of the others less that of the ones, in nats per example, a mean over networks.
        nll_gain_low, nll_gain_high: its 95 % interval for other images, a `bootstrap_interval` of means over networks.
    """
    wrong, nlls = zip(*losses, strict=True)
    other_wrong, other_nlls = zip(*other_losses, strict=True)
    gains = (torch.stack(other_nlls) - torch.stack(nlls)).mean(0)
    low, high = bootstrap_interval(gains)
    return {
        "accuracy_gain": (torch.stack(other_wrong).double() - torch.stack(wrong).double()).mean().item(),
        "mcnemar_p": list(map(mcnemar, wrong, other_wrong)),
        "nll_gain": gains.mean().item(),
        "nll_gain_low": low,
        "nll_gain_high": high,
    }


def paired_comparison(predictive: Predictive, other: Predictive, labels: Tensor) -> dict[str, float]:
    """How much better a network is than another on the same images.

    Args:
        predictive: of the one.
        other: of the other, for the same images.
        labels: [n].

    Returns:
        The figures of `paired_gains`, with one p-value.
    """
    gains = paired_gains([image_losses(predictive, labels)], [image_losses(other, labels)])
    return {**gains, "mcnemar_p": gains["mcnemar_p"][0]}
