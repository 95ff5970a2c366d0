"""Epistemic and aleatoric uncertainty as covariances of the predicted class (Kwon et al. 2018, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.prediction import normalized_softplus, predict, softmax

LINKS = {"softmax": softmax, "normalized": normalized_softplus}


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The two covariances of a prediction, for one image or a batch.

    The scalar uncertainty is the trace of a covariance; its sum over all entries is always 0, because probabilities
    sum to 1. The two traces add up to 1 − ‖p̄‖².

    Attributes:
        epistemic: [..., classes, classes], (1/T) Σ_t (p̂_t − p̄)(p̂_t − p̄)ᵀ: more data would reduce it.
        aleatoric: [..., classes, classes], (1/T) Σ_t diag(p̂_t) − p̂_t p̂_tᵀ: no amount of data reduces it.
        predicted: [...], the class of the largest p̄.
    """

    epistemic: Tensor
    aleatoric: Tensor
    predicted: Tensor

    @property
    def diagonals(self) -> tuple[Tensor, Tensor]:
        """Epistemic and aleatoric variance per class, [..., classes] each."""
        return self.epistemic.diagonal(dim1=-2, dim2=-1), self.aleatoric.diagonal(dim1=-2, dim2=-1)

    @property
    def traces(self) -> tuple[Tensor, Tensor]:
        """Epistemic and aleatoric uncertainty, [...] each."""
        epistemic, aleatoric = self.diagonals
        return epistemic.sum(-1), aleatoric.sum(-1)


def decompose(probs: Tensor) -> Uncertainty:
    """The uncertainty about each image.

    Args:
        probs: [T, n, classes], the probabilities of T samples.
    """
    mean = probs.mean(0)
    deviation = probs - mean
    epistemic = torch.einsum("tni,tnj->nij", deviation, deviation) / len(probs)
    aleatoric = mean.diag_embed() - torch.einsum("tni,tnj->nij", probs, probs) / len(probs)
    return Uncertainty(epistemic, aleatoric, mean.argmax(-1))


def uncertainty(
    net: nn.Module, images: Tensor, num_samples: int = 25, kind: str = "softmax", batch_size: int = 256, seed: int = 0
) -> Uncertainty:
    """The uncertainty of a network about each image (Kwon et al. 2018, eq. 4).

    Args:
        net: a Bayesian or deterministic network.
        images: [n, channels, height, width], normalized as in training.
        num_samples: draws from the posterior.
        kind: how logits become probabilities, 'softmax' or 'normalized' (Shridhar et al. 2018, eq. 15).
        batch_size: images per forward pass.
        seed: of the draws.

    Raises:
        ValueError: `kind` is unknown, or `num_samples` is below 1.
    """
    if kind not in LINKS:
        raise ValueError(f"unknown kind {kind!r}: known are {sorted(LINKS)}")
    return decompose(predict(net, images, num_samples, batch_size, seed, LINKS[kind]))
