"""The k-tied normal posterior: standard deviations of low rank."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kernels import RHO_FLOOR, rho_to_std, std_to_rho
from ..priors import Priors
from .gaussian import GaussianPosterior
from .posterior import Option, Posterior, at_least_one
from .with_prior import PosteriorWithPrior


class KTiedPosterior(PosteriorWithPrior):
    """q = N(μ, σ²) with σ = U Vᵀ of positive factors (Swiatkowski et al. 2020, arXiv 2002.02655, eq. 6).

    A weight of n elements is a matrix of its first axis, a, and all others: U = softplus(ρ_U) is [a, k],
    V = softplus(ρ_V) is [n/a, k]. So there are nearly half as many parameters as of the Gaussian posterior.

    Args:
        mean: the parameter whose posterior this is, of at least two axes.
        priors: the prior and the start of σ, that of a Gaussian posterior.
        rank: k.

    Raises:
        ValueError: a prior whose shape does not broadcast to the mean's.
    """

    family: ClassVar[str] = "k_tied"
    options: ClassVar[dict[str, Option]] = {"rank": (2, at_least_one)}
    silent: Tensor | None

    def __init__(self, mean: Tensor, priors: Priors, rank: int = 2) -> None:
        super().__init__(mean, priors)
        center, width = priors.posterior_rho_initial
        root = torch.tensor(center, dtype=torch.float64, device="cpu")  # where it has a value, also in a meta network
        center = float(std_to_rho((rho_to_std(root) / rank).sqrt()))
        rows, columns = mean.flatten(1).shape
        self.rho_rows = nn.Parameter(nn.init.normal_(mean.new_empty(rows, rank), center, width))
        self.rho_columns = nn.Parameter(nn.init.normal_(mean.new_empty(columns, rank), center, width))
        self.register_buffer("silent", None)

    @classmethod
    def for_parameter(cls, layer: Any, mean: Tensor, priors: Priors, **options: Any) -> Posterior:
        """The same for a matrix or a kernel; for a vector, such as a bias, the Gaussian posterior."""
        return GaussianPosterior(mean, priors) if mean.dim() < 2 else cls(mean, priors, **options)

    def std(self, mean: Tensor) -> Tensor:
        """σ = U Vᵀ."""
        std = (rho_to_std(self.rho_rows) @ rho_to_std(self.rho_columns).mT).view(self.shape)
        least = max(math.exp(RHO_FLOOR), torch.finfo(std.dtype).tiny)
        return std if self.silent is None else std.masked_fill(self.silent, least)

    @torch.no_grad()
    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """Set every row and every column of σ to ratio · |μ| on average, which is as near as factors come."""
        target = ratio * mean.abs().flatten(1).double() + 1e-6
        scale = target.mean().mul(self.rho_rows.shape[1]).sqrt()
        for rho, axis in ((self.rho_rows, 1), (self.rho_columns, 0)):
            rho.copy_(std_to_rho(target.mean(axis) / scale)[:, None].expand_as(rho))

    @torch.no_grad()
    def silence(self, mask: Tensor) -> None:
        """See `Posterior.silence`; the mask is saved with the factors."""
        self.silent = mask.clone() if self.silent is None else self.silent | mask

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if f"{prefix}rho_rows" in state_dict:
            mask = state_dict.get(f"{prefix}silent")
            self.silent = None if mask is None else torch.zeros_like(mask, device=self.rho_rows.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
