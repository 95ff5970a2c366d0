"""The negative ELBO per training example, and the weight of its KL over the course of training.

    loss = mean over batch and samples of −log p(y|x,w)  +  β · κ_i · KL(q‖p) / N        (nats)

N is the number of *training* examples. κ_i weighs the KL of batch i of an epoch. At β = 1 it is the negative ELBO, and
its optimum the variational posterior. There are two ways to a cold one:

- β < 1 shrinks the whole KL, and so the prior's pull on the means along with the reward for a wide posterior.
- A temperature T < 1 shrinks that reward, the entropy H(q), alone (Wenzel et al. 2020, section 2.3): in place of the
  KL, −E_q[log p(w)] − T·H(q) = KL(q‖p) + (1 − T)·H(q). For a Gaussian prior this is β = T with σ_p² scaled by T,
  because T·KL(q‖N(μ_p, Tσ_p²)) = E_q[(w − μ_p)²]/(2σ_p²) − T·H(q) + a constant: the means decay as at β = 1.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from layers import entropy
from likelihoods import Categorical, TaskLikelihood
from support import UserError, nearest

CATEGORICAL = Categorical()
Schedule = Callable[[int, int, int], float]  # steps taken so far, batches per epoch M, epochs of the training -> κ


def standard(step: int, batches: int, epochs: int) -> float:
    """κ = 1; for the arguments see `kl_weight`."""
    return 1.0


def blundell(step: int, batches: int, epochs: int) -> float:
    """κ_i = M·2^(M−i) / (2^M − 1), i = 1…M (Blundell et al. 2015, section 3.4): the prior first, then the data.

    Divided through by 2^M, it cannot overflow: M·2^(−i) / (1 − 2^(−M)). For the arguments see `kl_weight`.
    """
    index = step % batches + 1
    return batches * 2.0**-index / (1 - 2.0**-batches)


def soenderby(step: int, batches: int, epochs: int) -> float:
    """κ grows linearly from 0 to 1 over the first quarter of training (Sønderby et al. 2016).

    For the arguments see `kl_weight`.
    """
    quarter = max(1.0, batches * epochs / 4)
    return min(1.0, step / quarter)


SCHEDULES: dict[str, Schedule] = {"Standard": standard, "Blundell": blundell, "Soenderby": soenderby}


def kl_weight(beta_type: str | float, step: int, batches: int, epochs: int) -> float:
    """β · κ for a training step.

    Args:
        beta_type: the name of a schedule, with which β is 1, or β itself, with the Standard schedule.
        step: the number of steps taken since the beginning of training.
        batches: M, the number of batches per epoch.
        epochs: the number of epochs of the whole training.

    Returns:
        The factor of KL/N in the loss.

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


def expected_nll(outputs: list[Tensor], targets: Tensor, likelihood: TaskLikelihood = CATEGORICAL) -> Tensor:
    """The mean of −log p(y|x,w) over the batch and the posterior samples.

    It is the mean of log-likelihoods, as in the ELBO, not the log of their mean.

    Args:
        outputs: one tensor per posterior sample, such as logits [n, classes].
        targets: what the likelihood takes, such as labels [n].
        likelihood: whose loss is averaged.

    Returns:
        A scalar, in nats per example.
    """
    total = sum((likelihood.loss(sample, targets) for sample in outputs), start=outputs[0].new_zeros(()))
    return total / len(outputs)


def tempered_kl(kl: Tensor, net: nn.Module, temperature: float) -> Tensor:
    """−E_q[log p(w)] − T·H(q) = KL(q‖p) + (1 − T)·H(q), which takes the place of the KL in the loss.

    It is exact for every posterior and every fixed prior. A prior that follows the posterior, learned or that of the
    alpha posterior, has a cross-entropy of ½ log(μ² + σ²) per weight, so that μ and σ scaled by c add (1 − T) log c,
    which has no least value.

    Args:
        kl: KL(q‖p) of the network, in nats.
        net: the network.
        temperature: T; with 1, `kl` itself is returned.

    Returns:
        A scalar, in nats.
    """
    return kl if temperature == 1 else kl + (1 - temperature) * entropy(net)


def negative_elbo(nll: Tensor, kl: Tensor, weight: float, train_size: int) -> Tensor:
    """The loss: `nll + weight · kl / train_size`.

    Args:
        nll: the mean negative log-likelihood, in nats per example.
        kl: KL(q‖p) of the whole network, in nats, or what `tempered_kl` makes of it.
        weight: β · κ, from `kl_weight`.
        train_size: N, the number of training examples.

    Returns:
        A scalar, in nats per training example.
    """
    return nll + (weight / train_size) * kl
