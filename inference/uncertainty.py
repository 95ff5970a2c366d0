"""Epistemic and aleatoric uncertainty as covariances of the predicted class (Kwon et al. 2018, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inference.prediction import normalized, predict, softmax

LINKS = {"softmax": softmax, "normalized": normalized}


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The two covariances of a prediction, for an image or a batch of them.

    Attributes:
        epistemic: [..., classes, classes], (1/T) Σ (p̂_t − p̄)(p̂_t − p̄)ᵀ: what more data would remove.
        aleatoric: [..., classes, classes], (1/T) Σ diag(p̂_t) − p̂_t p̂_tᵀ: what no data removes.
        predicted: [...], the class of the largest p̄.

    The scalar of either is its trace. The sum over all entries would be zero, always: probabilities sum
    to one. The two traces add up to 1 − ‖p̄‖².
    """

    epistemic: Tensor
    aleatoric: Tensor
    predicted: Tensor

    @property
    def diagonals(self) -> tuple[Tensor, Tensor]:
        """Epistemic and aleatoric variance of each class: [..., classes] each."""
        return self.epistemic.diagonal(dim1=-2, dim2=-1), self.aleatoric.diagonal(dim1=-2, dim2=-1)

    @property
    def traces(self) -> tuple[Tensor, Tensor]:
        """Epistemic and aleatoric uncertainty: [...] each."""
        epistemic, aleatoric = self.diagonals
        return epistemic.sum(-1), aleatoric.sum(-1)


def decompose(probs: Tensor) -> Uncertainty:
    """The uncertainty of sampled probabilities [T, n, classes], image by image."""
    mean = probs.mean(0)
    spread = probs - mean
    epistemic = torch.einsum("tni,tnj->nij", spread, spread) / len(probs)
    aleatoric = mean.diag_embed() - torch.einsum("tni,tnj->nij", probs, probs) / len(probs)
    return Uncertainty(epistemic, aleatoric, mean.argmax(-1))


def uncertainty(
    net: nn.Module, images: Tensor, num_samples: int = 25, kind: str = "softmax", batch_size: int = 256, seed: int = 0
) -> Uncertainty:
    """The uncertainty of `net` about each of the images [n, channels, height, width], normalized as in training.

    Args:
        kind: how logits become probabilities, 'softmax' or 'normalized' (Shridhar et al. 2018, eq. 15).

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in LINKS:
        raise ValueError(f"unknown kind {kind!r}: known are {sorted(LINKS)}")
    return decompose(predict(net, images, num_samples, batch_size, seed, LINKS[kind]))
