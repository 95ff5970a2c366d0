"""What the outputs of a network mean: one of several classes, or labels of which each applies or not.

A likelihood reads outputs as logits over choices, on the last axis, and says what a prediction holds of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from likelihoods.summaries import Summaries


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis, with 0·log 0 = 0."""
    return torch.special.entr(probs).sum(-1)


def softmax(logits: Tensor) -> Tensor:
    """Probabilities exp(logits) / Σ exp(logits) over the last axis."""
    return logits.softmax(-1)


def normalized_softplus(logits: Tensor) -> Tensor:
    """Probabilities softplus(logits) / Σ softplus(logits) over the last axis (Shridhar et al. 2018, eq. 15)."""
    floor = -40.0  # below it log softplus(x) is x to the last digit, and softplus(x) itself soon rounds to 0
    log_softplus = torch.where(logits < floor, logits, F.softplus(logits.clamp_min(floor)).log())
    return log_softplus.softmax(-1)


def outer_mean(vectors: Tensor) -> Tensor:
    """(1/T) Σ_t v_t v_tᵀ, [..., k, k], of vectors [T, ..., k]."""
    return torch.einsum("t...i,t...j->...ij", vectors, vectors) / len(vectors)


@dataclass(frozen=True, eq=False)
class Predictive(Summaries):
    """Summaries of the posterior predictive for n images, float32 on the CPU.

    p̂_t are the class probabilities of sample t. For maps, whose outputs are [n, classes, height, width], `probs` has
    their shape, and [n] stands for [n, height, width] in all the others.

    Attributes:
        probs: [n, classes], p̄, the mean of p̂_t over the samples.
        expected_log_probs: [n, classes], the mean of log p̂_t, for the expected log-likelihood.
        expected_entropy: [n], the mean of H(p̂_t) in nats: the aleatoric uncertainty.
        epistemic_softmax: [n], trace of the epistemic covariance (Kwon et al. 2018, eq. 4) with p̂ = softmax(logits).
        aleatoric_softmax: [n], trace of the aleatoric covariance.
        epistemic_normalized: [n], as `epistemic_softmax` with p̂ = softplus(logits) / Σ softplus(logits) (Shridhar et
            al. 2018, eq. 15).
        aleatoric_normalized: [n], as `aleatoric_softmax` with the same p̂.
        log_probs: [n, classes], log p̄, finite also where p̄ rounds to 0.
        energy: [n], the mean of −log Σ_c exp(logit_c) over the samples, in nats (Liu et al. 2020, eq. 4): higher where
            the network has seen less of its kind.
        variation_ratio: [n], the fraction of the samples whose most probable class is not the one that most of them
            have (Gal 2016, section 3.3.1).
        accepted: [n], bool, whether the prediction is certain enough to act on: all are, unless a classifier's
            `Decisions` say otherwise.
    """

    probs: Tensor
    expected_log_probs: Tensor
    expected_entropy: Tensor
    epistemic_softmax: Tensor
    aleatoric_softmax: Tensor
    epistemic_normalized: Tensor
    aleatoric_normalized: Tensor
    log_probs: Tensor
    energy: Tensor
    variation_ratio: Tensor
    accepted: Tensor

    @property
    def labels(self) -> Tensor:
        """[n], int64, the most probable class."""
        return self.probs.argmax(1)

    @property
    def entropy(self) -> Tensor:
        """[n], H(p̄) in nats: the total uncertainty."""
        return torch.special.entr(self.probs).sum(1)

    @property
    def mutual_information(self) -> Tensor:
        """[n], H(p̄) − mean of H(p̂_t) in nats, at least 0: the epistemic uncertainty."""
        return (self.entropy - self.expected_entropy).clamp_min(0)


@dataclass(frozen=True, eq=False)
class BernoulliPredictive(Predictive):
    """Summaries of the posterior predictive for n images and labels of which each applies or not.

    `probs` [n, labels] are the probabilities that a label applies, and every uncertainty is [n, labels]. The epistemic
    one is the variance of p̂_t over the samples, the aleatoric one the mean of p̂_t(1 − p̂_t), with p̂ = sigmoid(logit);
    for the `normalized` ones p̂ = softplus(logit) / (softplus(logit) + softplus(0)). `log_probs` and
    `expected_log_probs` are [n, labels, 2], for a label that does not apply and for one that does.
    """

    @property
    def labels(self) -> Tensor:
        """[n, labels], int64, 1 where p̄ is above ½."""
        return (self.probs > 0.5).long()

    @property
    def entropy(self) -> Tensor:
        """[n, labels], H(p̄) = −p̄ log p̄ − (1−p̄) log(1−p̄) in nats: the total uncertainty."""
        return entropy(self.log_probs.exp())


@dataclass(frozen=True)
class Likelihood:
    """How outputs are read, and what is kept of the choices that they are about.

    Attributes:
        outputs: the outputs that it reads, for an error message.
        reads: whether it reads outputs of this shape.
        to_choices: from outputs to logits [..., choices].
        from_choices: from probabilities [..., choices] to those of a `Predictive`.
        total: from variances [..., choices] to that of the prediction.
        covariance: from the probabilities of T samples, [T, ..., outputs], to the mean over them of the target's
            covariance, [..., outputs, outputs].
        decide: from probabilities [..., outputs] to the predicted target.
        predictive: the kind of its summaries.
    """

    outputs: str
    reads: Callable[[torch.Size], bool]
    to_choices: Callable[[Tensor], Tensor]
    from_choices: Callable[[Tensor], Tensor]
    total: Callable[[Tensor], Tensor]
    covariance: Callable[[Tensor], Tensor]
    decide: Callable[[Tensor], Tensor]
    predictive: type[Predictive]

    def check(self, outputs: Tensor) -> None:
        """Refuse outputs, or probabilities, of a shape that it does not read, by a ValueError."""
        if not self.reads(outputs.shape):
            raise ValueError(f"expected {self.outputs}, got {list(outputs.shape)}")

    def logits(self, outputs: Tensor) -> Tensor:
        """The logits [..., choices] that these outputs are.

        Raises:
            ValueError: they have a shape that it does not read.
        """
        self.check(outputs)
        return self.to_choices(outputs)

    def probs(self, outputs: Tensor, link: Callable[[Tensor], Tensor]) -> Tensor:
        """The probabilities, of the shape of `outputs`, by a link from logits to probabilities over the last axis.

        Raises:
            ValueError: the outputs have a shape that it does not read.
        """
        return self.from_choices(link(self.logits(outputs)))


_CATEGORICAL = Likelihood(
    outputs="logits [n, classes, ...] of at least 2 classes",
    reads=lambda shape: len(shape) >= 2 and shape[1] >= 2,
    to_choices=lambda outputs: outputs.movedim(1, -1),
    from_choices=lambda probs: probs.movedim(-1, 1),
    total=lambda variances: variances.sum(-1),
    covariance=lambda probs: probs.mean(0).diag_embed() - outer_mean(probs),
    decide=lambda probs: probs.argmax(-1),
    predictive=Predictive,
)
LIKELIHOODS: dict[str | None, Likelihood] = {
    None: replace(
        _CATEGORICAL,
        outputs="logits [n, classes] of at least 2 classes (give likelihood='bernoulli' for outputs that are labels of "
        "their own, 'categorical' for maps [n, classes, ...])",
        reads=lambda shape: len(shape) == 2 and shape[1] >= 2,
    ),
    "categorical": _CATEGORICAL,
    "bernoulli": Likelihood(
        outputs="one logit per label, [n, labels]",
        reads=lambda shape: len(shape) == 2 and shape[1] >= 1,
        to_choices=lambda outputs: torch.stack([torch.zeros_like(outputs), outputs], -1),
        from_choices=lambda probs: probs[..., 1],
        total=lambda variances: variances[..., 1],
        covariance=lambda probs: (probs * (1 - probs)).mean(0).diag_embed(),
        decide=lambda probs: (probs > 0.5).long(),
        predictive=BernoulliPredictive,
    ),
}


def get_likelihood(name: str | None) -> Likelihood:
    """The likelihood of this name; None is the categorical one of outputs [n, classes] alone.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {name!r}: expected 'categorical' or 'bernoulli'")
    return LIKELIHOODS[name]
