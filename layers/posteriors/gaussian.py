"""The mean-field Gaussian posterior of Bayes by Backprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..kernels import RHO_FLOOR, rho_to_std, rhos_to_stds, std_to_rho
from ..passes import current_pass
from ..priors import Priors
from .posterior import Posterior
from .with_prior import PosteriorWithPrior


class GaussianPosterior(PosteriorWithPrior):
    """q = N(μ, σ²) with σ = softplus(ρ), independent over the weights (Blundell et al. 2015, 3.2).

    Args:
        mean: the parameter whose posterior this is; ρ takes its shape, device and dtype.
        priors: the prior and the start of ρ. The prior is saved with the weights, and loading them brings it along.

    Raises:
        ValueError: a prior whose shape does not broadcast to the mean's.
    """

    family: ClassVar[str] = "gaussian"

    def __init__(self, mean: Tensor, priors: Priors) -> None:
        super().__init__(mean, priors)
        self.rho = nn.Parameter(nn.init.normal_(torch.empty_like(mean), *priors.posterior_rho_initial))

    def std(self, mean: Tensor) -> Tensor:
        """σ = softplus(ρ); computed once per forward pass of a `ModuleWrapper`."""
        shared = current_pass()
        std = None if shared is None else shared.stds.get(self)
        if std is None or (torch.is_grad_enabled() and self.rho.requires_grad and not std.requires_grad):
            return rho_to_std(self.rho)
        return std

    @staticmethod
    def joint_stds(posteriors: Iterable[Posterior]) -> dict[nn.Module, Tensor]:
        """σ of every Gaussian posterior among `posteriors`, in few operations."""
        gaussian = [posterior for posterior in posteriors if isinstance(posterior, GaussianPosterior)]
        stds = rhos_to_stds([posterior.rho for posterior in gaussian])
        return dict(zip(gaussian, stds, strict=True))

    @torch.no_grad()
    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """Set σ to ratio · |μ|, and at least to 1e-6, from which a weight of 0 can still learn one."""
        self.rho.copy_(std_to_rho((ratio * mean.abs()).clamp_min(1e-6)).clamp_min(RHO_FLOOR))

    @torch.no_grad()
    def silence(self, mask: Tensor) -> None:
        """See `Posterior.silence`."""
        self.rho[mask] = RHO_FLOOR
