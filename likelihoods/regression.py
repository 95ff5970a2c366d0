"""Regression: Gaussian and Student-t likelihoods, and a predictive with separate aleatoric and epistemic variances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.kernels import at_least_float32, std_to_rho
from likelihoods.metrics import conformal_quantile
from likelihoods.summaries import Summaries

LEAST_NOISE = 1e-6  # s, in units of the scale


class GaussianLikelihood(nn.Module):
    """p(y|x, w) = N(f(x, w), s²) with a noise standard deviation s that is learned or predicted.

    Args:
        outputs: d, the number of targets per example.
        predicted: the network has 2·d outputs, and the second half is softplus⁻¹(s): the noise depends on x.
            Otherwise s is a parameter of this module, one per output; give it to the optimizer of the network.
        noise: the initial s when it is learned, in units of the scale.
        center: per output, what the targets vary around. The network's outputs are about (y − center) / scale.
        scale: per output, by how much.

    Raises:
        ValueError: `noise` is not a finite number above 0.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        outputs: int = 1,
        predicted: bool = False,
        noise: float = 1.0,
        center: Sequence[float] | float = 0.0,
        scale: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < noise < math.inf:
            raise ValueError(f"noise must be above 0 and finite, got {noise}")
        self.register_buffer("center", torch.as_tensor(center))
        self.register_buffer("scale", torch.as_tensor(scale))
        self.outputs, self.predicted = outputs, predicted
        self.rho = None if predicted else nn.Parameter(std_to_rho(torch.full((outputs,), float(noise))))

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y given the weights.

        Args:
            output: of the network, [n, d], or [n, 2·d] if the noise is predicted.

        Returns:
            Mean and variance, [n, d] each.

        Raises:
            ValueError: `output` has another number of features.
        """
        return self.location_and_scale(output)

    def location_and_scale(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """f and s² of y, [n, d] each, in float32 or wider, from the output that `moments` takes.

        Raises:
            ValueError: `output` has another number of features.
        """
        expected = self.outputs * (2 if self.predicted else 1)
        if output.shape[-1] != expected:
            raise ValueError(f"expected {expected} outputs per example, got {output.shape[-1]}")
        output = at_least_float32(output)
        center, scale = self.center.to(output), self.scale.to(output)
        mean = output[..., : self.outputs] * scale + center
        rho = output[..., self.outputs :] if self.rho is None else self.rho.to(output)
        return mean, (F.softplus(rho).clamp_min(LEAST_NOISE) * scale).square().expand_as(mean)

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """−log p(y|x, w) in nats, summed over the d targets and averaged over the n examples: a scalar.

        Args:
            output: as for `moments`.
            targets: [n, d].

        Raises:
            ValueError: `output` or `targets` has another shape.
        """
        mean, squared_scale = self.location_and_scale(output)
        if targets.shape != mean.shape:
            raise ValueError(f"expected targets of shape {tuple(mean.shape)}, got {tuple(targets.shape)}")
        return self.nll(mean, squared_scale, targets).sum(-1).mean()

    def nll(self, mean: Tensor, squared_scale: Tensor, targets: Tensor) -> Tensor:
        """−log p(y|x, w) in nats per example and target, [n, d], of f and s², [n, d] each."""
        return F.gaussian_nll_loss(mean, targets, squared_scale, full=True, eps=0, reduction="none")

    def summarize(self, samples: Iterable[Tensor]) -> RegressionPredictive:
        """The predictive of samples, one by one the outputs for the same examples, by the law of total variance.

        Raises:
            ValueError: there is no sample.
        """
        moments = [tuple(moment.cpu() for moment in self.moments(output)) for output in samples]
        if not moments:
            raise ValueError("there is no sample to summarize")
        means, variances = map(torch.stack, zip(*moments, strict=True))
        return RegressionPredictive(means.mean(0), variances.mean(0), means.var(0, correction=0))


class StudentTLikelihood(GaussianLikelihood):
    """p(y|x, w) = t_ν(f(x, w), s): heavier tails than a normal distribution, so that outliers pull less.

    Args:
        outputs: as for `GaussianLikelihood`, and so are `predicted`, `noise`, `center` and `scale`.
        predicted: the second half of the network's outputs is softplus⁻¹(s).
        noise: the initial s when it is learned.
        center: per output, what the targets vary around.
        scale: per output, by how much.
        freedom: ν, the degrees of freedom, above 2 so that there is a variance, s²ν/(ν − 2).

    Raises:
        ValueError: `freedom` is not a finite number above 2.
    """

    def __init__(
        self,
        outputs: int = 1,
        predicted: bool = False,
        noise: float = 1.0,
        center: Sequence[float] | float = 0.0,
        scale: Sequence[float] | float = 1.0,
        freedom: float = 4.0,
    ) -> None:
        super().__init__(outputs, predicted, noise, center, scale)
        if not 2 < freedom < math.inf:
            raise ValueError(f"freedom must be above 2 and finite, got {freedom}")
        self.freedom = freedom

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """As of `GaussianLikelihood`; the variance is s²ν/(ν − 2)."""
        mean, squared_scale = self.location_and_scale(output)
        return mean, squared_scale * (self.freedom / (self.freedom - 2))

    def nll(self, mean: Tensor, squared_scale: Tensor, targets: Tensor) -> Tensor:
        """As of `GaussianLikelihood`."""
        half = (self.freedom + 1) / 2
        constant = math.lgamma(half) - math.lgamma(self.freedom / 2) - 0.5 * math.log(self.freedom * math.pi)
        distance = (targets - mean).square() / (self.freedom * squared_scale)
        return 0.5 * squared_scale.log() + half * distance.log1p() - constant


@dataclass(frozen=True, eq=False)
class RegressionPredictive(Summaries):
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
