"""The negative ELBO per training example, and the weight of its KL over the course of training.

    loss = mean over batch and samples of −log p(y|x,w)  +  β · κ_i · KL(q‖p) / N        (nats)

N is the number of *training* examples. β is the temperature of the KL: 1 is the true posterior, below 1 a
cold one. κ_i weighs the KL of batch i of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from support import UserError, nearest

Schedule = Callable[[int, int, int], float]  # batch i = 0…M−1 of the epoch, M, epochs before and in all -> κ


def standard(step: int, batches: int, epochs: int) -> float:
    """κ = 1."""
    return 1.0


def blundell(step: int, batches: int, epochs: int) -> float:
    """κ_i = M·2^(M−i) / (2^M − 1), i = 1…M (Blundell et al. 2015, 3.4): the prior first, then the data.

    Divided through by 2^M, it cannot overflow: M·2^(−i) / (1 − 2^(−M)).
    """
    index = step % batches + 1
    return batches * 2.0**-index / (1 - 2.0**-batches)


def soenderby(step: int, batches: int, epochs: int) -> float:
    """κ grows linearly from 0 to 1 over the first quarter of training (Sønderby et al. 2016)."""
    quarter = max(1.0, batches * epochs / 4)
    return min(1.0, step / quarter)


SCHEDULES: dict[str, Schedule] = {"Standard": standard, "Blundell": blundell, "Soenderby": soenderby}


def kl_weight(beta_type: str | float, step: int, batches: int, epochs: int) -> float:
    """β · κ for a training step.

    Args:
        beta_type: the name of a schedule, under which β is 1, or β itself, under the Standard schedule.
        step: steps taken since the beginning of training.
        batches: M, the batches of an epoch.
        epochs: the epochs of the whole training.

    Raises:
        UserError: an unknown schedule.
    """
    if not isinstance(beta_type, str):
        return float(beta_type)
    if beta_type not in SCHEDULES:
        near = nearest(beta_type, SCHEDULES)
        raise UserError(
            f"unknown beta_type {beta_type!r}: did you mean {near!r}? Known are {', '.join(SCHEDULES)}, or a number"
        )
    return SCHEDULES[beta_type](step, batches, epochs)


def expected_nll(logits: list[Tensor], labels: Tensor) -> Tensor:
    """−log p(y|x,w) in nats, averaged over the batch and the posterior samples.

    The mean of log-likelihoods, as the ELBO has it, not the log of the mean.

    Args:
        logits: one tensor [n, classes] a sample.
        labels: [n].
    """
    total = sum((F.cross_entropy(sample, labels) for sample in logits), start=logits[0].new_zeros(()))
    return total / len(logits)


def negative_elbo(nll: Tensor, kl: Tensor, weight: float, train_size: int) -> Tensor:
    """`nll + weight · kl / train_size`: the loss, in nats per training example."""
    return nll + (weight / train_size) * kl
