"""Warnings about what goes wrong in a run without stopping it, each reported once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from layers import weight_posteriors
from training.reports import Row

GROWTH = 5  # epochs in a row in which the KL grows before it is reported
COLLAPSED, EXPLODED = 1e-8, 1e2  # standard deviations beyond which a weight is deterministic, or noise
MOVED, STEPS = 0.25, 300  # the median relative change of σ that is expected of a run of at least so many steps
SAMPLE = 10_000  # weights, about, whose σ is compared with its start


class Alarms:
    """Checks a run after every epoch.

    Args:
        net: the network that is trained.
        classes: the number of classes of which each example has one; 1 for other tasks, in which nothing is chance.
        epochs: the number of epochs of the whole run.
        batches: the number of batches per epoch, if the network is at the start of its run and σ has to move from
            there; otherwise 0.
        faster: what lets σ move faster.
        starts_at_prior: whether the posterior was its prior at the start, so that the KL can only grow from there.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: int,
        epochs: int,
        batches: int = 0,
        faster: str = "a larger lr_spread_factor",
        starts_at_prior: bool = False,
    ) -> None:
        self.net, self.classes, self.epochs = net, classes, epochs
        self.faster, self.starts_at_prior = faster, starts_at_prior
        self.steps = epochs * batches
        self.first_stds = self._sample_stds() if self.steps >= STEPS else None
        self.reported: set[str] = set()

    def check(self, history: Sequence[Row], examples: int) -> list[str]:
        """What is wrong now and has not been reported before.

        Args:
            history: one row per finished epoch.
            examples: the number of validation images, over which `valid_accuracy` is a mean.

        Returns:
            One line per new warning.
        """
        warnings = {
            "chance": self._at_chance(history[-1], examples),
            "kl": self._kl_grows(history),
            "deviations": self._deviations(),
            "start": self._stays(history[-1]),
        }
        new = {kind: text for kind, text in warnings.items() if text and kind not in self.reported}
        self.reported |= new.keys()
        return list(new.values())

    def _at_chance(self, row: Row, examples: int) -> str | None:
        chance = 1 / self.classes
        highest = chance + 3 * math.sqrt(chance * (1 - chance) / examples)  # by luck alone
        if row["epoch"] < self.epochs / 4 or highest >= 1 or row["valid_accuracy"] > highest:
            return None
        advice = "a smaller lr_start"
        if any(posterior.prior_follows for _, _, posterior in weight_posteriors(self.net)):
            advice += ", or beta_type Soenderby: a prior that follows the weights may draw all of them to 0 at first"
        return (
            f"after {row['epoch']:.0f} of {self.epochs} epochs validation accuracy is {row['valid_accuracy']:.1%}, "
            f"no better than chance: try {advice}"
        )

    def _kl_grows(self, history: Sequence[Row]) -> str | None:
        kls = [row["train_kl"] for row in history[-GROWTH - 1 :] if "train_kl" in row]
        grows = len(kls) > GROWTH and all(later > earlier for earlier, later in pairwise(kls))
        if self.starts_at_prior or not grows or kls[-1] < 2 * kls[0]:
            return None
        return (
            f"the KL has grown in {GROWTH} epochs in a row, from {kls[0]:,.0f} to {kls[-1]:,.0f} nats: try a smaller "
            f"lr_start or a larger beta_type"
        )

    @torch.no_grad()
    def _deviations(self) -> str | None:
        extremes = [posterior.std(mean).aminmax() for _, mean, posterior in weight_posteriors(self.net)]
        if not extremes:
            return None
        smallest, largest = min(float(each.min) for each in extremes), max(float(each.max) for each in extremes)
        if largest < COLLAPSED:
            return f"all posterior deviations are below {COLLAPSED:g}: the network is deterministic"
        if smallest > EXPLODED:
            return f"all posterior deviations are above {EXPLODED:g}: the weights are noise, try a smaller prior_sigma"
        return None

    def _stays(self, row: Row) -> str | None:
        if self.first_stds is None or not len(self.first_stds) or row["epoch"] < self.epochs:
            return None
        change = float((self._sample_stds() / self.first_stds - 1).abs().median())
        if not change < MOVED:
            return None
        return (
            f"in {self.steps:,} steps the median posterior deviation has changed by only {change:.0%}, so the network "
            f"is about as unsure as it was at its start: try {self.faster}, or more epochs"
        )

    @torch.no_grad()
    def _sample_stds(self) -> Tensor:
        """Of evenly spaced weights; empty if the network has no Bayesian ones."""
        stds = [posterior.std(mean).flatten() for _, mean, posterior in weight_posteriors(self.net)]
        stride = max(1, sum(map(len, stds)) // SAMPLE)
        return torch.cat([each[::stride] for each in stds]) if stds else torch.empty(0)
