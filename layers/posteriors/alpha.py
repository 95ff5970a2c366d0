"""The variational dropout posterior: a standard deviation in proportion to the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import at_least_float32
from ..priors import Priors
from .posterior import Posterior, broadcasts


class AlphaPosterior(Posterior):
    """q = N(μ, α·μ²) under an automatic-relevance prior.

    Args:
        mean: the parameter whose posterior this is.
        alpha_shape: the shape of log α, which broadcasts to the mean's.
        priors: where log α starts.

    Raises:
        ValueError: `alpha_shape` does not broadcast to the mean's shape, or `priors` asks for another prior.
    """

    def __init__(self, mean: Tensor, alpha_shape: Sequence[int], priors: Priors) -> None:
        super().__init__()
        if not broadcasts(alpha_shape, mean.shape):
            raise ValueError(
                f"alpha_shape {tuple(alpha_shape)} does not broadcast to the weight's shape {tuple(mean.shape)}"
            )
        if priors.prior is not None or priors.learn_prior_sigma:
            raise ValueError("the alpha posterior has a prior of its own: leave out prior and learn_prior_sigma")
        self.log_alpha = nn.Parameter(mean.new_full(tuple(alpha_shape), priors.posterior_log_alpha_initial))

    def std(self, mean: Tensor) -> Tensor:
        """σ = √α · |μ|."""
        return (0.5 * self.log_alpha).exp() * mean.abs()

    @property
    def prior_follows(self) -> bool:
        """Always: the automatic-relevance prior has one τ per weight, at its best."""
        return True

    @torch.no_grad()
    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """Set α to ratio²."""
        self.log_alpha.fill_(2 * math.log(ratio))

    @staticmethod
    def joint_kl(posteriors: Sequence[AlphaPosterior], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) = Σ ½ log(1 + 1/α), in nats, to the prior N(0, τ²) at its best τ.

        KL(N(μ, σ²) ‖ N(0, τ²)) = log(τ/σ) + (σ² + μ²)/(2τ²) − ½ is least at τ² = μ² + σ², where it is
        ½ log((μ² + σ²)/σ²) = ½ log(1 + 1/α). An α that several weights share counts once for each of them.
        """
        terms = []
        for posterior, mean in zip(posteriors, means, strict=True):
            log_alpha = at_least_float32(posterior.log_alpha)
            terms.append(F.softplus(-log_alpha).sum() * (0.5 * mean.numel() / log_alpha.numel()))
        return torch.stack(terms).sum()
