"""Regression: a Gaussian likelihood, and a predictive with separate aleatoric and epistemic variances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.kernels import std_to_rho
from likelihoods.metrics import conformal_quantile


class GaussianLikelihood(nn.Module):
    """p(y|x, w) = N(f(x, w), s²) with a noise standard deviation s that is learnt or predicted.

    Args:
        outputs: d, the number of targets per example.
        predicted: the network has 2·d outputs, and the second half is softplus⁻¹(s): the noise depends on x.
            Otherwise s is a parameter of this module, one per output; give it to the optimizer of the network.
        noise: the initial s when it is learnt.

    Raises:
        ValueError: `noise` is not a finite number above 0.
    """

    def __init__(self, outputs: int = 1, predicted: bool = False, noise: float = 1.0) -> None:
        super().__init__()
        if not 0 < noise < math.inf:
            raise ValueError(f"noise must be above 0 and finite, got {noise}")
        self.outputs, self.predicted = outputs, predicted
        self.rho = None if predicted else nn.Parameter(std_to_rho(torch.full((outputs,), float(noise))))

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y.

        Args:
            output: of the network, [n, d], or [n, 2·d] if the noise is predicted.

        Returns:
            Mean and variance, [n, d] each.

        Raises:
            ValueError: `output` has another number of features.
        """
        expected = self.outputs * (2 if self.predicted else 1)
        if output.shape[-1] != expected:
            raise ValueError(f"expected {expected} outputs per example, got {output.shape[-1]}")
        mean = output[..., : self.outputs]
        rho = output[..., self.outputs :] if self.rho is None else self.rho
        return mean, F.softplus(rho).square().clamp_min(1e-12).expand_as(mean)

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """−log p(y|x, w) in nats, summed over the d targets and averaged over the n examples: a scalar.

        Args:
            output: as for `moments`.
            targets: [n, d].

        Raises:
            ValueError: `output` or `targets` has another shape.
        """
        mean, variance = self.moments(output)
        if targets.shape != mean.shape:
            raise ValueError(f"expected targets of shape {tuple(mean.shape)}, got {tuple(targets.shape)}")
        return F.gaussian_nll_loss(mean, targets, variance, full=True, eps=0, reduction="none").sum(-1).mean()


@dataclass(frozen=True, eq=False)
class RegressionPredictive:
    """The posterior predictive of n examples, on the CPU: Var y = E[s²] + Var f.

    Attributes:
        mean: [n, d], the mean of f over the samples.
        aleatoric: [n, d], the mean of the noise variance s²: no amount of data reduces it.
        epistemic: [n, d], the variance of f over the samples: more data would reduce it.
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    @property
    def std(self) -> Tensor:
        """[n, d], the standard deviation of y."""
        return (self.aleatoric + self.epistemic).sqrt()

    def interval(self, level: float = 0.9, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """The central interval of a normal distribution with this mean and deviation, per example and target.

        Args:
            level: the probability of the interval, between 0 and 1.
            scale: what its width is multiplied by, such as a `conformal_scale`, [d] or a number.

        Returns:
            Its lower and its upper ends, [n, d] each.

        Raises:
            ValueError: `level` is not between 0 and 1.
        """
        reach = scale * _normal_quantile(level) * self.std
        return self.mean - reach, self.mean + reach

    def coverage(self, targets: Tensor, level: float = 0.9, scale: Tensor | float = 1.0) -> Tensor:
        """How many of the targets [n, d] are within their `interval`, a fraction per target, [d]."""
        low, high = self.interval(level, scale)
        return ((low <= targets) & (targets <= high)).double().mean(0)

    def conformal_scale(self, targets: Tensor, level: float = 0.9) -> Tensor:
        """By what the intervals must be multiplied to hold a new target with a probability of at least `level`.

        The split conformal quantile of |y − mean| / std (Angelopoulos & Bates 2023, section 2.3), as a multiple of the
        normal distribution's. It holds for targets that are exchangeable with these.

        Args:
            targets: [n, d], of held-out examples, to which this predictive belongs.
            level: the probability.

        Returns:
            [d], one per target; ∞ if there are too few examples for this level.

        Raises:
            ValueError: `level` is not between 0 and 1.
        """
        scores = (targets - self.mean).abs() / self.std
        quantiles = [conformal_quantile(column, 1 - level) for column in scores.unbind(1)]
        return torch.tensor(quantiles) / _normal_quantile(level)


def _normal_quantile(level: float) -> float:
    """How many standard deviations the central interval of this probability reaches to each side."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)
