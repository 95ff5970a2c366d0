"""A likelihood as a run needs it: what loss it trains by, what its predictions are, and how good they are.

Training, prediction and reports ask one such object. It is plain values in settings and checkpoints: `parse_task`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from likelihoods import metrics
from likelihoods.classification import Predictive
from likelihoods.regression import GaussianLikelihood, RegressionPredictive, StudentTLikelihood
from support import nearest, number

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the intervals whose coverage is reported


@dataclass(frozen=True)
class TaskLikelihood(ABC):
    """A likelihood with its options.

    Attributes:
        tasks: the tasks that it is for.
        reading: what its outputs are, as for `inference.summarize`; None for logits [n, classes], and where they are no
            logits.
        figure: what the history of a run follows besides the NLL: accuracy or rmse.
    """

    tasks: ClassVar[tuple[str, ...]]
    reading: ClassVar[str | None] = None
    figure: ClassVar[str] = "accuracy"

    def outputs(self, targets: int) -> int:
        """How many outputs a network has for so many classes, labels or targets."""
        return targets

    def check(self, targets: int) -> None:
        """Refuse options that are not for so many classes, labels or targets, by a ValueError."""
        for name in ("class_weights", "positive_weights", "center", "scale"):
            values = getattr(self, name, None)
            if values is not None and len(values) != targets:
                raise ValueError(f"{name} of the likelihood: expected {targets} numbers, got {len(values)}")

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training minimizes, the mean over the examples of −log p(y|x, w), in nats: a scalar."""

    @abstractmethod
    def progress(self, samples: Sequence[Tensor], targets: Tensor) -> Tensor:
        """[n], of which the mean, in `followed`, is the figure of the mean prediction of some samples of outputs."""

    def followed(self, mean: float) -> float:
        """The figure, of the mean of `progress`."""
        return mean

    @abstractmethod
    def validation(self, predictive: Any, targets: Tensor) -> dict[str, float]:
        """The NLL of the mean prediction (nats per example) and the figure; of classes and labels, the expected NLL."""

    @abstractmethod
    def scores(self, predictive: Any, targets: Tensor) -> dict[str, float]:
        """How good predictions are, in a few numbers."""

    @abstractmethod
    def details(self, predictive: Any, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """How good predictions are by class, label or target, with plain values."""

    @abstractmethod
    def uncertainties(self, predictive: Any) -> dict[str, Tensor]:
        """How uncertain the network is of each image, [n], in total and by its weights alone, by name."""


@dataclass(frozen=True)
class Categorical(TaskLikelihood):
    """One of several classes per image, or per pixel for segmentation.

    Attributes:
        label_smoothing: how much of a label's probability goes to all classes alike in the loss (Szegedy et al. 2016).
        class_weights: by how much the examples of each class count in the loss; None for all alike. Weights whose mean
            over the examples is 1 leave the weight of the KL as it is.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    tasks: ClassVar[tuple[str, ...]] = ("classification", "segmentation")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of `TaskLikelihood`; outputs [n, classes, ...] and int64 targets [n, ...], summed over pixels."""
        pixels = targets[0].numel()
        if self.class_weights is None:
            return pixels * F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
        weights = torch.tensor(self.class_weights, device=outputs.device)
        losses = F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing, reduction="none")
        return pixels * (losses * weights[targets]).mean()

    def progress(self, samples: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Whether the most probable class is the right one; of pixels, how many of them."""
        probs = torch.stack([*samples]).softmax(2).mean(0)
        correct = probs.argmax(1) == targets
        return correct if correct.dim() == 1 else correct.float().flatten(1).mean(1)

    def validation(self, predictive: Predictive, targets: Tensor) -> dict[str, float]:
        """As of `TaskLikelihood`; the NLLs are summed over pixels."""
        index, pixels = targets.unsqueeze(-1), targets[0].numel()
        if targets.dim() == 1:
            accuracy = metrics.accuracy(predictive.probs, targets)
        else:
            accuracy = (predictive.labels == targets).double().mean().item()
        return {
            "nll": pixels * -predictive.log_probs.gather(-1, index).double().mean().item() + 0.0,
            "accuracy": accuracy,
            "expected_nll": pixels * -predictive.expected_log_probs.double().gather(-1, index).mean().item(),
        }

    def scores(self, predictive: Predictive, targets: Tensor) -> dict[str, float]:
        """Accuracy, NLL, Brier score and ECE; for maps, of pixels, and the mean intersection over union.

        The NLL is per image also for maps.
        """
        if targets.dim() == 1:
            return metrics.scores(predictive, targets)
        probs, labels = predictive.probs.movedim(1, -1).flatten(0, -2), targets.flatten()
        unions = metrics.intersection_over_union(predictive.labels, targets, probs.shape[1])
        nll = self.validation(predictive, targets)["nll"]
        return {**metrics.scores(probs, labels), "nll": nll, "iou": unions.nanmean().item()}

    def details(self, predictive: Predictive, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """The accuracy of each class and the confusion matrix, rows the true classes; for maps, IoU by class too."""
        confusion = metrics.confusion(predictive.labels, targets, len(names))
        accuracies = confusion.diagonal() / confusion.sum(1)
        details: dict[str, Any] = {"class_accuracy": _by_name(names, accuracies), "confusion": confusion.tolist()}
        if targets.dim() > 1:
            unions = metrics.intersection_over_union(predictive.labels, targets, len(names))
            details["class_iou"] = _by_name(names, unions)
        return details

    def uncertainties(self, predictive: Predictive) -> dict[str, Tensor]:
        """Entropy and mutual information in nats; of maps, their means over the pixels."""
        scores = {"total entropy": predictive.entropy, "mutual information": predictive.mutual_information}
        return {name: values.flatten(1).mean(1) if values.dim() > 1 else values for name, values in scores.items()}


@dataclass(frozen=True)
class NoisyDirichlet(Categorical):
    """One of several classes, with logits that are regressed on those of a Dirichlet distribution around the label.

    With α = onehot(y) + α_ε, the log of a Gamma(α_c, 1) variable is about normal, with the variance
    σ̃² = log(1 + 1/α_c) and the mean μ̃ = log α_c − σ̃²/2 (Milios et al. 2018; Kapoor et al. 2022, section 5). The smaller
    α_ε, the surer the labels are taken to be: at β = 1 it can stand for the certainty of augmented data.

    Attributes:
        alpha_epsilon: α_ε, above 0.
    """

    label_smoothing: ClassVar[float] = 0.0  # type: ignore[misc]  # no option: the target is a distribution already
    alpha_epsilon: float = 0.01
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Σ_c −log N(f_c; μ̃_c, σ̃_c²), averaged over the examples."""
        alpha = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype) + self.alpha_epsilon
        variance = (1 / alpha).log1p()
        mean = alpha.log() - variance / 2
        losses = F.gaussian_nll_loss(outputs, mean, variance, full=True, eps=0, reduction="none").sum(1)
        if self.class_weights is not None:
            losses = losses * torch.tensor(self.class_weights, device=outputs.device)[targets]
        return losses.mean()


@dataclass(frozen=True)
class Bernoulli(TaskLikelihood):
    """Labels of which each applies to an image or not.

    Attributes:
        positive_weights: by how much the loss of each label counts where it applies; None for 1.
    """

    positive_weights: tuple[float, ...] | None = None
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)
    reading: ClassVar[str | None] = "bernoulli"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over the labels [n, labels]."""
        weights = None if self.positive_weights is None else torch.tensor(self.positive_weights, device=outputs.device)
        losses = F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weights, reduction="none")
        return losses.sum(1).mean()

    def progress(self, samples: Sequence[Tensor], targets: Tensor) -> Tensor:
        """How many of the labels are right."""
        probs = torch.stack([*samples]).sigmoid().mean(0)
        return ((probs > 0.5) == (targets > 0.5)).float().mean(1)

    def validation(self, predictive: Predictive, targets: Tensor) -> dict[str, float]:
        """As of `TaskLikelihood`."""
        index = targets.long().unsqueeze(-1)
        expected = predictive.expected_log_probs.double().gather(-1, index).sum(1).mean().item()
        return {**self._nll_and_accuracy(predictive, targets), "expected_nll": -expected}

    def _nll_and_accuracy(self, predictive: Predictive, targets: Tensor) -> dict[str, float]:
        labels = targets.long()
        log_probs = predictive.log_probs.gather(-1, labels.unsqueeze(-1)).double()
        return {
            "nll": -log_probs.sum(1).mean().item() + 0.0,
            "accuracy": (predictive.labels == labels).double().mean().item(),
        }

    def scores(self, predictive: Predictive, targets: Tensor) -> dict[str, float]:
        """NLL and accuracy, and over the labels the means of AUROC, Brier score and ECE.

        The AUROC is of the labels that apply to some of the images and not to all.
        """
        by_label = self._by_label(predictive, targets)
        means = {name: [values[name] for values in by_label] for name in ("auroc", "brier", "ece")}
        known = {name: [value for value in values if not math.isnan(value)] for name, values in means.items()}
        return {
            **self._nll_and_accuracy(predictive, targets),
            **{name: sum(values) / len(values) for name, values in known.items() if values},
        }

    def details(self, predictive: Predictive, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """For each label its accuracy, AUROC, Brier score, ECE and the fraction of the images that it applies to."""
        return {"labels": dict(zip(names, map(_plain, self._by_label(predictive, targets)), strict=True))}

    def uncertainties(self, predictive: Predictive) -> dict[str, Tensor]:
        """Entropy and mutual information in nats, summed over the labels."""
        return {
            "total entropy": predictive.entropy.sum(1),
            "mutual information": predictive.mutual_information.sum(1),
        }

    def _by_label(self, predictive: Predictive, targets: Tensor) -> list[dict[str, float]]:
        rows = []
        for probs, applies in zip(predictive.probs.unbind(1), targets.long().unbind(1), strict=True):
            both = torch.stack([1 - probs, probs], 1)
            mixed = 0 < int(applies.sum()) < len(applies)
            rows.append(
                {
                    "accuracy": ((probs > 0.5) == (applies > 0)).double().mean().item(),
                    "auroc": metrics.novelty(probs[applies == 0], probs[applies == 1])["auroc"] if mixed else math.nan,
                    "brier": (probs - applies).double().square().mean().item(),
                    "ece": metrics.ece(both, applies),
                    "frequency": applies.double().mean().item(),
                }
            )
        return rows


@dataclass(frozen=True)
class Gaussian(TaskLikelihood):
    """Targets with Gaussian noise of a deviation that the network predicts as well.

    Attributes:
        center: per target, the mean of the training targets, which the outputs are relative to.
        scale: per target, their standard deviation.
    """

    center: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    figure: ClassVar[str] = "rmse"

    def outputs(self, targets: int) -> int:
        """A mean and a deviation of the noise per target."""
        return 2 * targets

    @cached_property
    def module(self) -> GaussianLikelihood:
        """The likelihood as `inference.regression_predictive` takes it."""
        return GaussianLikelihood(len(self.center), predicted=True, center=self.center, scale=self.scale)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over the targets [n, targets]."""
        value: Tensor = self.module(outputs, targets)
        return value

    def progress(self, samples: Sequence[Tensor], targets: Tensor) -> Tensor:
        """The squared error, averaged over the targets."""
        means = torch.stack([self.module.location_and_scale(sample)[0] for sample in samples])
        return (means.mean(0) - targets).square().mean(1)

    def followed(self, mean: float) -> float:
        """The root."""
        return math.sqrt(mean)

    def validation(self, predictive: RegressionPredictive, targets: Tensor) -> dict[str, float]:
        """As of `TaskLikelihood`; the NLL is that of the normal distribution with the predictive's moments."""
        variance = (predictive.aleatoric + predictive.epistemic).double()
        means = predictive.mean.double()
        losses = F.gaussian_nll_loss(means, targets.double(), variance, full=True, eps=0, reduction="none")
        rmse = (predictive.mean - targets).double().square().mean().sqrt().item()
        return {"nll": losses.sum(1).mean().item(), "rmse": rmse}

    def scores(self, predictive: RegressionPredictive, targets: Tensor) -> dict[str, float]:
        """NLL, RMSE, R², and how far the coverage of intervals is from their level.

        R² is the mean over the targets that vary; it is left out where none does.
        """
        variance = targets.double().var(0, correction=0)
        r2 = 1 - (predictive.mean - targets).double().square().mean(0) / variance
        gaps = [abs(predictive.coverage(targets, level).mean().item() - level) for level in LEVELS]
        return {
            **self.validation(predictive, targets),
            **({"r2": r2[variance > 0].mean().item()} if (variance > 0).any() else {}),
            "coverage_90": predictive.coverage(targets, 0.9).mean().item(),
            "calibration_error": sum(gaps) / len(gaps),
        }

    def details(self, predictive: RegressionPredictive, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """For each target its RMSE, the mean deviations of noise and model, and the coverage of central intervals."""
        errors = (predictive.mean - targets).double().square().mean(0).sqrt().tolist()
        aleatoric, epistemic = (
            values.sqrt().mean(0).tolist() for values in (predictive.aleatoric, predictive.epistemic)
        )
        coverage = {level: predictive.coverage(targets, level).tolist() for level in LEVELS}
        return {
            "targets": {
                name: {
                    "rmse": errors[index],
                    "aleatoric_std": aleatoric[index],
                    "epistemic_std": epistemic[index],
                    "coverage": {f"{level:g}": values[index] for level, values in coverage.items()},
                }
                for index, name in enumerate(names)
            }
        }

    def uncertainties(self, predictive: RegressionPredictive) -> dict[str, Tensor]:
        """Standard deviations as multiples of those of the training targets, averaged over the targets."""
        scale = torch.tensor(self.scale)
        return {
            "total deviation": (predictive.std / scale).mean(1),
            "epistemic deviation": (predictive.epistemic.sqrt() / scale).mean(1),
        }


@dataclass(frozen=True)
class StudentT(Gaussian):
    """Targets with noise of a Student-t distribution, whose heavy tails let outliers pull less.

    Attributes:
        freedom: ν, the degrees of freedom, above 2.
    """

    freedom: float = 4.0

    @cached_property
    def module(self) -> GaussianLikelihood:
        """As of `Gaussian`."""
        return StudentTLikelihood(
            len(self.center), predicted=True, center=self.center, scale=self.scale, freedom=self.freedom
        )


LIKELIHOODS: dict[str, type[TaskLikelihood]] = {
    "categorical": Categorical,
    "noisy_dirichlet": NoisyDirichlet,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "student_t": StudentT,
}
TASKS = {
    task: tuple(name for name, kind in LIKELIHOODS.items() if task in kind.tasks)
    for task in ("classification", "multilabel", "regression", "segmentation")
}  # the likelihoods of each task, the default first


def _weights(value: Any) -> tuple[float, ...] | None:
    return None if value is None else _positive(value)


def _positive(value: Any) -> tuple[float, ...]:
    return tuple(map(number(0, exclusive=True), _sequence(value)))


def _finite(value: Any) -> tuple[float, ...]:
    return tuple(map(number(-math.inf), _sequence(value)))


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("a list of numbers")
    return value


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "label_smoothing": number(0, 1),
    "class_weights": _weights,
    "positive_weights": _weights,
    "alpha_epsilon": number(0, exclusive=True),
    "freedom": number(2, exclusive=True),
    "center": _finite,
    "scale": _positive,
}


def parse_task(value: Mapping[str, Any]) -> TaskLikelihood:
    """A likelihood from plain values.

    Args:
        value: 'task', a key of `TASKS`; 'likelihood', one of those of the task, by default the first; its options.

    Raises:
        ValueError: an unknown task, likelihood or option, or one that it cannot have; the message is a sentence.
    """
    options = dict(value)
    task = options.pop("task", "classification")
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"unknown task {task!r}: did you mean {nearest(task, TASKS)!r}? Known are {', '.join(TASKS)}")
    name = options.pop("likelihood", TASKS[task][0])
    if name not in TASKS[task]:
        raise ValueError(f"the task {task} has no likelihood {name!r}: expected {' or '.join(TASKS[task])}")
    kind = LIKELIHOODS[name]
    known = [each.name for each in fields(kind)]
    for option in options:
        if option not in known:
            raise ValueError(f"the likelihood {name} has no option {option!r}: expected {', '.join(known)}")
        try:
            options[option] = OPTIONS[option](options[option])
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{option} of the likelihood {name}: expected {error}, got {options[option]!r}") from error
    return kind(**options)


def _by_name(names: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return _plain(dict(zip(names, values.tolist(), strict=True)))


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN, of a class that is not there, as None: JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
