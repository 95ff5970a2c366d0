"""Scores of predicted class probabilities against labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

CALIBRATION_BINS = 15


def nll(probs: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood, −log p̄_y, in nats per example."""
    chosen = probs.gather(-1, labels[:, None]).squeeze(-1)
    return -chosen.clamp_min(torch.finfo(probs.dtype).tiny).log().mean().item()


def brier(probs: Tensor, labels: Tensor) -> float:
    """Mean Σ_c (p̄_c − [y = c])² per example, between 0 and 2 (Brier 1950)."""
    return (probs - F.one_hot(labels, probs.shape[-1])).square().sum(-1).mean().item()


def ece(probs: Tensor, labels: Tensor) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, eq. 3), between 0 and 1."""
    return multiclass_calibration_error(probs, labels, probs.shape[-1], n_bins=CALIBRATION_BINS, norm="l1").item()


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """The fraction of labels that have the highest probability."""
    return multiclass_accuracy(probs, labels, probs.shape[-1], average="micro").item()


def scores(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL (nats per example), Brier and ECE of probabilities [n, classes] against labels [n]."""
    return {
        "accuracy": accuracy(probs, labels),
        "nll": nll(probs, labels),
        "brier": brier(probs, labels),
        "ece": ece(probs, labels),
    }
