"""Epistemic and aleatoric uncertainty as covariances of the predicted class (Kwon et al. 2018, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from inference.prediction import predict
from likelihoods import get_likelihood, normalized_softplus, outer_mean, softmax
from support import UserError

LINKS = {"softmax": softmax, "normalized": normalized_softplus}


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The two covariances of a prediction, for one image or a batch.

    The scalar uncertainty is the trace of a covariance; its sum over all entries is always 0, because probabilities
    sum to 1. The two traces add up to 1 − ‖p̄‖². For maps, [...] ends with their height and width. With the Bernoulli
    likelihood, the covariances are those of labels that each apply or not: [..., labels, labels], of any sum.

    Attributes:
        epistemic: [..., classes, classes], (1/T) Σ_t (p̂_t − p̄)(p̂_t − p̄)ᵀ: more data would reduce it.
        aleatoric: [..., classes, classes], (1/T) Σ_t diag(p̂_t) − p̂_t p̂_tᵀ: no amount of data reduces it. For labels
            that apply or not, (1/T) Σ_t diag(p̂_t(1 − p̂_t)).
        predicted: [...], the class of the largest p̄; or [..., labels], 1 where p̄ is above ½.
    """

    epistemic: Tensor
    aleatoric: Tensor
    predicted: Tensor

    @property
    def diagonals(self) -> tuple[Tensor, Tensor]:
        """Epistemic and aleatoric variance per class or label, [..., classes] each."""
        return self.epistemic.diagonal(dim1=-2, dim2=-1), self.aleatoric.diagonal(dim1=-2, dim2=-1)

    @property
    def traces(self) -> tuple[Tensor, Tensor]:
        """Epistemic and aleatoric uncertainty, [...] each."""
        epistemic, aleatoric = self.diagonals
        return epistemic.sum(-1), aleatoric.sum(-1)


def decompose(probs: Tensor, *, likelihood: str | None = None) -> Uncertainty:
    """The uncertainty about each image.

    Args:
        probs: the probabilities of T samples as `predict` returns them: [T, n, classes], [T, n, classes, ...] or
            [T, n, labels].
        likelihood: what they are probabilities of, as for `summarize`.

    Raises:
        ValueError: the likelihood is unknown, or `probs` is not what it reads.
        UserError: a probability is not finite.
    """
    reading = get_likelihood(likelihood)
    reading.check(probs[0])
    if not probs.isfinite().all():
        raise UserError("expected finite probabilities: the weights of the network or its images are not finite")
    probs = probs.movedim(2, -1)
    mean = probs.mean(0)
    return Uncertainty(outer_mean(probs - mean), reading.covariance(probs), reading.decide(mean))


def uncertainty(
    net: nn.Module,
    images: Tensor,
    num_samples: int = 25,
    kind: str = "softmax",
    batch_size: int = 256,
    seed: int = 0,
    *,
    likelihood: str | None = None,
) -> Uncertainty:
    """The uncertainty of a network about each image (Kwon et al. 2018, eq. 4).

    Args:
        net: a Bayesian or deterministic network.
        images: [n, channels, height, width], normalized as in training.
        num_samples: draws from the posterior.
        kind: how logits become probabilities, 'softmax' or 'normalized' (Shridhar et al. 2018, eq. 15).
        batch_size: images per forward pass.
        seed: of the draws.
        likelihood: what the outputs are, as for `summarize`.

    Raises:
        ValueError: `kind` or the likelihood is unknown, `num_samples` is below 1, or the outputs are not what the
            likelihood reads.
        UserError: a probability is not finite.
    """
    if kind not in LINKS:
        raise ValueError(f"unknown kind {kind!r}: known are {sorted(LINKS)}")
    probs = predict(net, images, num_samples, batch_size, seed, LINKS[kind], likelihood=likelihood)
    return decompose(probs, likelihood=likelihood)
