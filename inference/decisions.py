"""From uncertainties to decisions: calibrated probabilities, when to say "I do not know", and sets of classes.

All are fitted on held-out images, which the network has not been trained on. They hold for images of the same kind as
those: under shift a temperature is too low, and neither a risk nor a coverage is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likelihoods import SCORES, Predictive, conformal_quantile, threshold_at_risk
from support import Check, UserError, number, one_of, whole

TEMPERATURES = (0.05, 20.0)  # between which one is looked for
CHECKS: Mapping[str, Check] = {
    "temperature": number(0, exclusive=True),
    "score": one_of(*SCORES),
    "risk": number(0, 1),
    "threshold": number(-math.inf),
    "alpha": number(0, 1, exclusive=True),
    "lac": number(0),
    "adaptive": number(0),
    "images": whole(1),
}


@dataclass(frozen=True)
class Decisions:
    """What was fitted on held-out images so that predictions can be acted on. A checkpoint keeps it.

    Attributes:
        temperature: what the logits of every sample are divided by.
        score: the key of `metrics.SCORES` that says how uncertain a prediction is.
        risk: the largest fraction of wrong ones among the held-out predictions that are accepted.
        threshold: the largest score at which a prediction is accepted.
        alpha: sets of classes miss the class of an image with at most this probability.
        lac: the largest 1 − p̄ of a class in a set of `lac_scores`.
        adaptive: the largest score of a class in a set of `adaptive_scores`.
        images: how many held-out images it was fitted on.
    """

    temperature: float
    score: str
    risk: float
    threshold: float
    alpha: float
    lac: float
    adaptive: float
    images: int

    def __post_init__(self) -> None:
        """Check the values: whoever makes a file can write anything into it.

        Raises:
            ValueError: a value that decisions cannot have; the message names it.
        """
        for name, check in CHECKS.items():
            try:
                check(getattr(self, name))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{name}: expected {error}") from error

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: str | Path) -> Decisions | None:
        """The decisions in the content of a checkpoint, if it has any.

        Raises:
            UserError: they are broken.
        """
        if "decisions" not in content:
            return None
        try:
            return cls(**content["decisions"])
        except (TypeError, ValueError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{path} has broken decisions ({error}): expected {names}; calibrate it again") from error

    def to_content(self) -> dict[str, Any]:
        """The entry of a checkpoint that `from_content` reads."""
        return {"decisions": asdict(self)}

    def accepts(self, predictive: Predictive) -> Tensor:
        """[n], bool, whether each prediction, by logits divided by the temperature, is certain enough."""
        return SCORES[self.score](predictive) <= self.threshold

    def sets(self, predictive: Predictive, kind: str = "lac") -> Tensor:
        """[n, classes], bool, a set of classes for each image.

        Args:
            predictive: by logits divided by the temperature.
            kind: a key of `SET_SCORES`. 'lac' has the smallest sets on average, and an empty one for an image that no
                class fits. 'adaptive' has larger sets for harder images, and none is empty.

        Raises:
            ValueError: an unknown kind.
        """
        if kind not in SET_SCORES:
            raise ValueError(f"unknown kind of sets {kind!r}: expected {' or '.join(map(repr, SET_SCORES))}")
        return SET_SCORES[kind](predictive.probs) <= getattr(self, kind)


def lac_scores(probs: Tensor) -> Tensor:
    """1 − p̄ of each class, [n, classes] (Sadinle et al. 2019: least ambiguous set-valued classifiers)."""
    return 1 - probs


def adaptive_scores(probs: Tensor) -> Tensor:
    """The total p̄ of all likelier classes, [n, classes], 0 for the most probable class.

    A set of them has classes in the order of their p̄ until a total is passed (Romano et al. 2020, without the
    randomization: where more than 1 − α of the predictions are right, sets of one class hold the right one more often).
    """
    ordered, order = probs.sort(stable=True, dim=-1, descending=True)
    totals = ordered.cumsum(-1).clamp_max(1).roll(1, -1)  # of many classes, rounding may exceed 1
    totals[..., 0] = 0
    return torch.empty_like(probs).scatter_(-1, order, totals)


SET_SCORES: dict[str, Callable[[Tensor], Tensor]] = {"lac": lac_scores, "adaptive": adaptive_scores}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimizes the NLL of the mean probabilities (Guo et al. 2017, section 4.2).

    Args:
        logits: [samples, n, classes], of draws from a posterior; one sample for a deterministic network.
        labels: [n].

    Returns:
        A temperature within `TEMPERATURES`, to a relative accuracy of 1e-4.
    """
    chosen = labels.expand(len(logits), -1).unsqueeze(-1)

    def mean_nll(log_temperature: float) -> float:
        log_p = (logits / math.exp(log_temperature)).log_softmax(-1).gather(-1, chosen)
        return -log_p.double().logsumexp(0).mean().item()

    low, high = (math.log(bound) for bound in TEMPERATURES)
    golden = (math.sqrt(5) - 1) / 2  # of an interval, it leaves one of two inner points for the next, smaller one
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = mean_nll(left), mean_nll(right)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = mean_nll(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = mean_nll(right)
    return math.exp((low + high) / 2)


def fit_decisions(
    predictive: Predictive, labels: Tensor, temperature: float, score: str, risk: float, alpha: float
) -> Decisions:
    """The threshold and the sets of classes for predictions of held-out images.

    Args:
        predictive: by logits divided by the temperature.
        labels: [n].
        temperature: of `fit_temperature`.
        score: a key of `metrics.SCORES`.
        risk: the largest fraction of wrong ones among the accepted predictions.
        alpha: the probability with which a set may miss the class of an image.

    Raises:
        UserError: no threshold keeps the risk.
    """
    threshold, _ = threshold_at_risk(SCORES[score](predictive), predictive.labels != labels, risk)
    if threshold == -math.inf:
        raise UserError(
            f"at no {score} are at most {risk:.2%} of the predictions for the {len(labels):,} validation images wrong: "
            f"give a higher --risk, or train a better network"
        )
    quantiles = {
        kind: min(1.0, conformal_quantile(scores(predictive.probs).gather(1, labels[:, None])[:, 0], alpha))
        for kind, scores in SET_SCORES.items()
    }
    return Decisions(temperature, score, risk, threshold, alpha, **quantiles, images=len(labels))


def decision_scores(decisions: Decisions, predictive: Predictive, labels: Tensor | None = None) -> dict[str, float]:
    """What the decisions come to, for images whose labels are known, or for unknown images.

    Args:
        decisions: of the network that made the predictions.
        predictive: by logits divided by its temperature.
        labels: [n], if the classes of the images are known.

    Returns:
        accepted: the fraction of the predictions that are accepted.
        accepted_risk: the fraction of these that are wrong; 0 if there are none.
        …_coverage: how often the set of classes has the label, for each kind of sets.
        …_size: the mean number of classes in a set.
    """
    accepted = decisions.accepts(predictive)
    scores = {"accepted": accepted.double().mean().item()}
    if labels is not None:
        wrong = (predictive.labels != labels)[accepted]
        scores["accepted_risk"] = wrong.double().mean().item() if len(wrong) else 0.0
    for kind in SET_SCORES:
        members = decisions.sets(predictive, kind)
        if labels is not None:
            scores[f"{kind}_coverage"] = members.gather(1, labels[:, None]).double().mean().item()
        scores[f"{kind}_size"] = members.sum(1).double().mean().item()
    return scores
