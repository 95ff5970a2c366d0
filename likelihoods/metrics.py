"""Scores of predicted probabilities: accuracy, likelihood, calibration, selective prediction, novelty.

torchmetrics is imported by the functions that use it, because it imports matplotlib, which no prediction needs.

In all of these functions, `probs` are probabilities [n, classes] and `labels` the true classes, int64 [n]. `scores` and
`nll` also take a `Predictive`, whose log-probabilities stay exact where probabilities round to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from likelihoods.classification import Predictive
from support import UserError

BINS = 15


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """The fraction of examples whose label has the highest probability."""
    from torchmetrics.functional.classification import multiclass_accuracy

    return multiclass_accuracy(probs, labels, probs.shape[-1], average="micro").item()


def nll(predicted: Tensor | Predictive, labels: Tensor) -> float:
    """Mean negative log-likelihood, −log p̄_y, in nats per example.

    Args:
        predicted: probabilities [n, classes], of which one that is 0 counts as the smallest float; or a predictive, of
            any likelihood.
        labels: [n]; for a predictive, of the shape of its `labels`.
    """
    if isinstance(predicted, Predictive):
        log_probs = predicted.log_probs.gather(-1, labels.unsqueeze(-1)).double()
    else:
        chosen = predicted.gather(-1, labels[:, None])
        log_probs = chosen.clamp(torch.finfo(predicted.dtype).tiny, 1.0).double().log()
    return -log_probs.mean().item() + 0.0  # -0.0 becomes 0.0


def brier(probs: Tensor, labels: Tensor) -> float:
    """Mean Σ_c (p̄_c − [y = c])² per example, between 0 and 2 (Brier 1950)."""
    return (probs - F.one_hot(labels, probs.shape[-1])).square().sum(-1).mean().item()


def ece(probs: Tensor, labels: Tensor) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, eq. 3), between 0 and 1."""
    bins = reliability(probs, labels)
    return ((bins.count * (bins.accuracy - bins.confidence).abs()).sum() / bins.count.sum()).item()


def calibrated_ece(probs: Tensor, draws: int = 20) -> float:
    """The `ece` that perfectly calibrated probabilities show: the mean over labels that are drawn from them.

    It is above 0, since a bin has finitely many examples: an ECE below it says nothing more about calibration.

    Args:
        probs: [n, classes].
        draws: of the labels of all examples, always the same.
    """
    probs = probs.cpu()
    labels = probs.multinomial(draws, replacement=True, generator=torch.Generator().manual_seed(0))
    return math.fsum(ece(probs, each) for each in labels.unbind(1)) / draws


def adaptive_ece(probs: Tensor, labels: Tensor) -> float:
    """`ece` over 15 bins of equally many examples, sorted by confidence (Nguyen & O'Connor 2015)."""
    confidence, correct = _confidence(probs, labels)
    bins = confidence.argsort(descending=True).tensor_split(min(BINS, len(labels)))
    gaps = [len(examples) * (confidence[examples].mean() - correct[examples].mean()).abs() for examples in bins]
    return (torch.stack(gaps).sum() / len(labels)).item()


def scores(predicted: Tensor | Predictive, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL (nats per example), Brier score and ECE, by name.

    Args:
        predicted: probabilities [n, classes], or a predictive of them.
        labels: [n].

    Raises:
        ValueError: `predicted` or `labels` has another shape.
        UserError: a probability is not finite.
    """
    probs = predicted.probs if isinstance(predicted, Predictive) else predicted
    if probs.dim() != 2 or probs.shape[1] < 2 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"expected probabilities [n, classes] of at least 2 classes and labels [n], got {list(probs.shape)} and "
            f"{list(labels.shape)}"
        )
    _check_finite("probabilities", probs)
    return {
        "accuracy": accuracy(probs, labels),
        "nll": nll(predicted, labels),
        "brier": brier(probs, labels),
        "ece": ece(probs, labels),
    }


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many examples, or pixels, of each class are taken for each class.

    Args:
        predicted: int64, the predicted classes.
        labels: int64 of the same shape, the true ones.
        classes: how many there are.

    Returns:
        int64 [classes, classes], rows the true classes, columns the predicted ones.
    """
    pairs = labels.flatten().long() * classes + predicted.flatten()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def intersection_over_union(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[classes], how many of the pixels that are of a class, or are taken for it, are both (Jaccard's index).

    NaN for a class that is in neither. For the arguments see `confusion`.
    """
    matrix = confusion(predicted, labels, classes).double()
    both = matrix.diagonal()
    return both / (matrix.sum(0) + matrix.sum(1) - both)


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
    """The reliability diagram in 15 bins of equal width, each of which includes its upper edge.

    Raises:
        UserError: a probability is not finite.
    """
    confidence, correct = _confidence(probs, labels)
    inner_edges = torch.arange(1, BINS, dtype=torch.float64) / BINS
    bins = torch.bucketize(confidence, inner_edges.to(probs.dtype).double())  # rounded as the probabilities are
    count = torch.bincount(bins, minlength=BINS)
    filled = count > 0
    means = [
        torch.bincount(bins, weights=values, minlength=BINS)[filled] / count[filled] for values in (confidence, correct)
    ]
    return Reliability(means[0], means[1], count[filled])


def risk_coverage(uncertainty: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Error rate among the k most certain predictions, for every k (El-Yaniv & Wiener 2010).

    Where predictions are equally uncertain, it is the expectation over their order.

    Args:
        uncertainty: [n], higher where the network is less certain.
        wrong: bool [n], whether the prediction is wrong.

    Returns:
        Coverage, k/n for k = 1…n, and risk, the fraction of the k most certain predictions that are wrong; both [n].

    Raises:
        UserError: an uncertainty is not finite.
    """
    _check_finite("uncertainties", uncertainty)
    _, ties, sizes = uncertainty.unique(return_inverse=True, return_counts=True)  # sorted
    error_rates = torch.bincount(ties, weights=wrong.double()) / sizes
    kept = torch.arange(1, len(wrong) + 1)
    return kept / len(wrong), error_rates.repeat_interleave(sizes).cumsum(0) / kept


def risk_coverage_area(uncertainty: Tensor, wrong: Tensor) -> float:
    """The mean risk over all coverages: 0 if no prediction is wrong, the error rate in expectation for random order."""
    return risk_coverage(uncertainty, wrong)[1].mean().item()


def threshold_at_risk(uncertainty: Tensor, wrong: Tensor, risk: float) -> tuple[float, float]:
    """The largest uncertainty up to which predictions can be accepted at a risk.

    Args:
        uncertainty: [n], higher where the network is less certain.
        wrong: bool [n], whether the prediction is wrong.
        risk: the largest fraction of the accepted predictions that may be wrong, on these n.

    Returns:
        The threshold, −∞ if none is low enough, and the coverage, the fraction of the predictions at or below it.

    Raises:
        UserError: an uncertainty is not finite.
    """
    _check_finite("uncertainties", uncertainty)
    values, ties, sizes = uncertainty.unique(return_inverse=True, return_counts=True)  # sorted
    accepted, errors = sizes.cumsum(0), torch.bincount(ties, weights=wrong.double()).cumsum(0)
    fits = (errors <= risk * accepted).nonzero()
    if not len(fits):
        return -math.inf, 0.0
    last = int(fits[-1])
    return values[last].item(), accepted[last].item() / len(wrong)


RISKS = (0.005, 0.01, 0.05)


def selective_scores(uncertainty: Tensor, wrong: Tensor) -> dict[str, float]:
    """How well an uncertainty says which predictions to leave out.

    Args:
        uncertainty: [n], higher where the network is less certain.
        wrong: bool [n], whether the prediction is wrong.

    Returns:
        risk_coverage_area: `risk_coverage_area`, AURC.
        excess_risk_coverage_area: what of it is more than that of an uncertainty which leaves the wrong predictions out
            first (Geifman et al. 2019, E-AURC).
        generalized_risk_area: the mean over all coverages of the fraction of all predictions that are accepted and
            wrong (Traub et al. 2024, AUGRC): for an error rate e, from e²/2 at best to e/2 at random, for large n.
        coverage_at_…_risk: the fraction of predictions that can be accepted with at most .5, 1 and 5 % of them wrong.

    Raises:
        UserError: an uncertainty is not finite.
    """
    coverage, risk = risk_coverage(uncertainty, wrong)
    area = risk.mean().item()
    return {
        "risk_coverage_area": area,
        "excess_risk_coverage_area": area - risk_coverage_area(wrong.double(), wrong),
        "generalized_risk_area": (coverage * risk).mean().item(),
        **{f"coverage_at_{100 * r:g}%_risk": threshold_at_risk(uncertainty, wrong, r)[1] for r in RISKS},
    }


SCORES: dict[str, Callable[[Predictive], Tensor]] = {
    "total entropy": lambda predictive: predictive.entropy,
    "mutual information": lambda predictive: predictive.mutual_information,
    "max probability": lambda predictive: _one_minus_max(predictive.probs),
    "energy": lambda predictive: predictive.energy,
    "variation ratio": lambda predictive: predictive.variation_ratio,
    "epistemic (softmax)": lambda predictive: predictive.epistemic_softmax,
    "aleatoric (softmax)": lambda predictive: predictive.aleatoric_softmax,
    "epistemic (normalized)": lambda predictive: predictive.epistemic_normalized,
    "aleatoric (normalized)": lambda predictive: predictive.aleatoric_normalized,
}  # each [n], higher where the network is less certain of its prediction


def conformal_quantile(scores: Tensor, alpha: float) -> float:
    """The threshold of split conformal prediction: the ⌈(n + 1)(1 − α)⌉-th smallest of n scores.

    A new score, exchangeable with these, is at most this with a probability of at least 1 − α, and at most
    1 − α + 1/(n + 1) if no two are equal (Vovk et al. 2005; Angelopoulos & Bates 2023, theorem 1).

    Args:
        scores: [n], of held-out images and their labels.
        alpha: the probability of a higher score, between 0 and 1.

    Returns:
        The threshold; ∞ if n is too small for this α, so that every score is below it.
    """
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)  # the product's rounding is not to add one
    return math.inf if rank > len(scores) else scores.sort().values[rank - 1].item()


def novelty(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """How well a score, which should be higher for unknown images, tells them from known ones.

    Args:
        known: the scores of the known images, [n].
        unknown: the scores of the unknown images, [m].

    Returns:
        auroc: probability that an unknown image scores above a known one, ties counting half.
        aupr: average precision with the unknown images as positives.
        fpr95: fraction of the known images that score at least the highest threshold that 95 % of the unknown reach.

    Raises:
        ValueError: the scores are not [n] and [m], or there are none of one kind.
        UserError: a score is not finite.
    """
    if known.dim() != 1 or unknown.dim() != 1 or not len(known) or not len(unknown):
        raise ValueError(f"expected scores [n] and [m], got {list(known.shape)} and {list(unknown.shape)}")
    _check_finite("scores of known images", known)
    _check_finite("scores of unknown images", unknown)
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc

    score = torch.cat([known, unknown]).double()
    # torchmetrics applies a sigmoid to scores outside [0, 1], which would turn large entropies into ties.
    score = score - score.min().clamp_max(0)
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
    _check_finite("probabilities", probs)
    confidence, predicted = probs.double().max(-1)
    return confidence, (predicted == labels).double()


def _check_finite(what: str, values: Tensor) -> None:
    finite = values.isfinite()
    if not finite.all():
        raise UserError(
            f"expected finite {what}, got {int((~finite).sum())} of {values.numel()} that are not: the network or its "
            f"inputs are broken"
        )
