"""What goes wrong in a run without stopping it, said once each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from layers import weight_posteriors
from training.reports import Row

GROWTH = 5  # epochs in a row that a KL grows before it is said
COLLAPSED, EXPLODED = 1e-8, 1e2  # deviations beyond which a weight is certain, or noise


class Alarms:
    """Looks at a run after every epoch.

    Args:
        net: the network that is trained.
        classes: how many there are.
        epochs: of the whole run.
    """

    def __init__(self, net: nn.Module, classes: int, epochs: int) -> None:
        self.net, self.classes, self.epochs = net, classes, epochs
        self.said: set[str] = set()

    def after(self, history: Sequence[Row], examples: int) -> list[str]:
        """What is wrong now and has not been said before, a line each.

        Args:
            history: a row a finished epoch.
            examples: those that validation accuracy is over.
        """
        found = {
            "chance": self._at_chance(history[-1], examples),
            "kl": self._kl_grows(history),
            "spread": self._spreads(),
        }
        new = {kind: text for kind, text in found.items() if text and kind not in self.said}
        self.said |= new.keys()
        return list(new.values())

    def _at_chance(self, row: Row, examples: int) -> str | None:
        chance = 1 / self.classes
        noise = math.sqrt(chance * (1 - chance) / examples)
        if row["epoch"] < self.epochs / 4 or row["valid_accuracy"] > chance + 3 * noise:
            return None
        return (
            f"after {row['epoch']:.0f} of {self.epochs} epochs validation accuracy is {row['valid_accuracy']:.1%}, "
            f"no better than chance: try a smaller lr_start"
        )

    def _kl_grows(self, history: Sequence[Row]) -> str | None:
        kls = [row["train_kl"] for row in history[-GROWTH - 1 :] if "train_kl" in row]
        grows = len(kls) > GROWTH and all(later > before for before, later in pairwise(kls))
        if not grows or kls[-1] < 2 * kls[0]:
            return None
        return (
            f"the KL has grown in {GROWTH} epochs in a row, from {kls[0]:,.0f} to {kls[-1]:,.0f} nats: try a smaller "
            f"lr_start or a larger beta_type"
        )

    @torch.no_grad()
    def _spreads(self) -> str | None:
        ends = [posterior.std(mean).aminmax() for _, mean, posterior in weight_posteriors(self.net)]
        if not ends:
            return None
        least, most = min(float(end.min) for end in ends), max(float(end.max) for end in ends)
        if most < COLLAPSED:
            return f"all posterior deviations are below {COLLAPSED:g}: the network is deterministic"
        if least > EXPLODED:
            return f"all posterior deviations are above {EXPLODED:g}: the weights are noise, try a smaller prior_sigma"
        return None
