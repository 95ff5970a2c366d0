"""Regression: a Gaussian likelihood, and the posterior predictive that splits its variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.prediction import effective_samples, logits_of, posterior_draws
from layers.kernels import std_to_rho


class GaussianLikelihood(nn.Module):
    """p(y|x, w) = N(f(x, w), s²) with a noise s that is learnt or predicted.

    Args:
        outputs: d, how many numbers are predicted of an example.
        predicted: the network has 2·d outputs, of which the second half is softplus⁻¹(s): a noise that depends
            on x. Otherwise s is a parameter of this module, one an output, for the optimizer that trains the
            network.
        noise: what s starts from when it is learnt.

    Raises:
        ValueError: a noise that is not above 0 and finite; from a call, an output that has not the features that
            are needed, or targets of another shape than the mean's.
    """

    def __init__(self, outputs: int = 1, predicted: bool = False, noise: float = 1.0) -> None:
        super().__init__()
        if not 0 < noise < math.inf:
            raise ValueError(f"noise must be above 0 and finite, got {noise}")
        self.outputs, self.predicted = outputs, predicted
        self.rho = None if predicted else nn.Parameter(std_to_rho(torch.full((outputs,), float(noise))))

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y [n, d] by a network's output [n, d], or [n, 2·d] if the noise is predicted."""
        wanted = self.outputs * (2 if self.predicted else 1)
        if output.shape[-1] != wanted:
            raise ValueError(f"expected {wanted} outputs an example, got {output.shape[-1]}")
        mean = output[..., : self.outputs]
        rho = output[..., self.outputs :] if self.rho is None else self.rho
        return mean, F.softplus(rho).square().clamp_min(1e-12).expand_as(mean)

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """−log p(y|x, w) in nats, summed over the d numbers and averaged over the n examples: a scalar.

        Args:
            output: as for `moments`.
            targets: [n, d].
        """
        mean, variance = self.moments(output)
        if targets.shape != mean.shape:
            raise ValueError(f"expected targets of shape {tuple(mean.shape)}, got {tuple(targets.shape)}")
        return F.gaussian_nll_loss(mean, targets, variance, full=True, eps=0, reduction="none").sum(-1).mean()


@dataclass(frozen=True, eq=False)
class RegressionPredictive:
    """The posterior predictive of n examples, [n, d] each, on the CPU: Var y = E[s²] + Var f.

    Attributes:
        mean: the mean of f over the samples.
        aleatoric: the mean of the noise variance s²: what no data removes.
        epistemic: the variance of f over the samples: what more data would remove.
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    @property
    def std(self) -> Tensor:
        """The standard deviation of y."""
        return (self.aleatoric + self.epistemic).sqrt()


def regression_predictive(
    net: nn.Module,
    likelihood: GaussianLikelihood,
    inputs: Tensor,
    num_samples: int = 100,
    batch_size: int = 1024,
    seed: int = 0,
) -> RegressionPredictive:
    """Mean and variances of y over draws of `net`'s posterior, by the law of total variance."""
    with torch.inference_mode():
        draws = posterior_draws(net, effective_samples(net, num_samples), seed)
        moments = [likelihood.moments(logits_of(draw, inputs, batch_size)) for draw in draws]
        means, variances = (torch.stack(parts).cpu() for parts in zip(*moments, strict=True))
        return RegressionPredictive(means.mean(0), variances.mean(0), means.var(0, correction=0))
