"""Scores of predicted probabilities: accuracy, likelihood, calibration, selective prediction, novelty.

torchmetrics is imported by the functions that use it, because it imports matplotlib, which no prediction needs.

In all of these functions, `probs` are probabilities [n, classes] and `labels` the true classes, int64 [n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.prediction import Predictive

BINS = 15


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """The fraction of examples whose label has the highest probability."""
    from torchmetrics.functional.classification import multiclass_accuracy

    return multiclass_accuracy(probs, labels, probs.shape[-1], average="micro").item()


def nll(probs: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood, −log p̄_y, in nats per example."""
    chosen = probs.gather(-1, labels[:, None]).squeeze(-1)
    return -chosen.clamp(torch.finfo(probs.dtype).tiny, 1.0).double().log().mean().item() + 0.0  # -0.0 becomes 0.0


def brier(probs: Tensor, labels: Tensor) -> float:
    """Mean Σ_c (p̄_c − [y = c])² per example, between 0 and 2 (Brier 1950)."""
    return (probs - F.one_hot(labels, probs.shape[-1])).square().sum(-1).mean().item()


def ece(probs: Tensor, labels: Tensor) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, eq. 3), between 0 and 1."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(probs, labels, probs.shape[-1], n_bins=BINS, norm="l1").item()


def adaptive_ece(probs: Tensor, labels: Tensor) -> float:
    """`ece` over 15 bins of equally many examples, sorted by confidence (Nguyen & O'Connor 2015)."""
    confidence, correct = _confidence(probs, labels)
    bins = confidence.argsort(descending=True).tensor_split(min(BINS, len(labels)))
    gaps = [len(examples) * (confidence[examples].mean() - correct[examples].mean()).abs() for examples in bins]
    return (torch.stack(gaps).sum() / len(labels)).item()


def scores(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL (nats per example), Brier score and ECE, by name."""
    return {
        "accuracy": accuracy(probs, labels),
        "nll": nll(probs, labels),
        "brier": brier(probs, labels),
        "ece": ece(probs, labels),
    }


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram (Guo et al. 2017), over the bins that are not empty.

    Attributes:
        confidence: [bins], mean confidence.
        accuracy: [bins].
        count: [bins], number of examples.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def reliability(probs: Tensor, labels: Tensor) -> Reliability:
    """The reliability diagram with the bins of `ece`."""
    confidence, correct = _confidence(probs, labels)
    inner_edges = torch.linspace(0, 1, BINS + 1)[1:-1]
    bins = torch.bucketize(confidence, inner_edges)
    count = torch.bincount(bins, minlength=BINS)
    filled = count > 0
    means = [
        torch.bincount(bins, weights=values, minlength=BINS)[filled] / count[filled] for values in (confidence, correct)
    ]
    return Reliability(means[0], means[1], count[filled])


def risk_coverage(uncertainty: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Error rate among the k most certain predictions, for every k (El-Yaniv & Wiener 2010).

    Args:
        uncertainty: [n], higher where the network is less certain.
        wrong: bool [n], whether the prediction is wrong.

    Returns:
        Coverage, k/n for k = 1…n, and risk, the fraction of the k most certain predictions that are wrong; both [n].
    """
    kept = torch.arange(1, len(wrong) + 1)
    return kept / len(wrong), wrong[uncertainty.argsort(stable=True)].double().cumsum(0) / kept


def risk_coverage_area(uncertainty: Tensor, wrong: Tensor) -> float:
    """The mean risk over all coverages: 0 if no prediction is wrong, the error rate in expectation for random order."""
    return risk_coverage(uncertainty, wrong)[1].mean().item()


SCORES: dict[str, Callable[[Predictive], Tensor]] = {
    "total entropy": lambda predictive: predictive.entropy,
    "mutual information": lambda predictive: predictive.mutual_information,
    "max probability": lambda predictive: _one_minus_max(predictive.probs),
    "epistemic (softmax)": lambda predictive: predictive.epistemic_softmax,
    "aleatoric (softmax)": lambda predictive: predictive.aleatoric_softmax,
    "epistemic (normalized)": lambda predictive: predictive.epistemic_normalized,
    "aleatoric (normalized)": lambda predictive: predictive.aleatoric_normalized,
}  # each [n], higher where the network is less certain of its prediction


def novelty(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """How well a score, which should be higher for unknown images, tells them from known ones.

    Args:
        known: the scores of the known images, [n].
        unknown: the scores of the unknown images, [m].

    Returns:
        auroc: probability that an unknown image scores above a known one, ties counting half.
        aupr: average precision with the unknown images as positives.
        fpr95: fraction of the known images that score at least the highest threshold that 95 % of the unknown reach.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc

    score = torch.cat([known, unknown]).double()
    # torchmetrics applies a sigmoid to scores outside [0, 1], which would turn large entropies into ties.
    score = score / score.max().clamp_min(torch.finfo(score.dtype).tiny)
    target = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))]).long()
    fpr, tpr, _ = binary_roc(score, target)
    return {
        "auroc": binary_auroc(score, target).item(),
        "aupr": binary_average_precision(score, target).item(),
        "fpr95": fpr[(tpr >= 0.95).nonzero()[0]].item(),
    }


def _one_minus_max(probs: Tensor) -> Tensor:
    """1 − max p̄ as the sum of the other classes' probabilities: the difference itself would often round to 0."""
    return probs.scatter(-1, probs.argmax(-1, keepdim=True), 0).sum(-1)


def _confidence(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    confidence, predicted = probs.double().max(-1)
    return confidence, (predicted == labels).double()
