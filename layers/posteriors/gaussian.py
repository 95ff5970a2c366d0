"""The mean-field Gaussian posterior of Bayes by Backprop."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import RHO_FLOOR, at_least_float32, in_few_rows, rho_to_std, rhos_to_stds, std_to_rho
from ..passes import current_pass
from ..priors import GaussianPrior, Prior, Priors, prior_from_state
from .posterior import Posterior, broadcasts


class GaussianPosterior(Posterior):
    """q = N(μ, σ²) with σ = softplus(ρ), independent over the weights (Blundell et al. 2015, 3.2).

    Args:
        mean: the parameter whose posterior this is; ρ takes its shape, device and dtype.
        priors: the prior and the start of ρ. The prior is saved with the weights, and loading them brings it along.

    Raises:
        ValueError: a prior whose shape does not broadcast to the mean's.
    """

    prior: Prior

    def __init__(self, mean: Tensor, priors: Priors) -> None:
        super().__init__()
        self.rho = nn.Parameter(nn.init.normal_(torch.empty_like(mean), *priors.posterior_rho_initial))
        self._set_prior(priors.make_prior().for_shape(mean.shape))

    def _set_prior(self, prior: Prior) -> None:
        if not broadcasts(prior.shape, self.rho.shape):
            raise ValueError(
                f"a prior of shape {tuple(prior.shape)} does not broadcast to weights {tuple(self.rho.shape)}"
            )
        self.prior = prior.to(self.rho)

    def std(self, mean: Tensor) -> Tensor:
        """σ = softplus(ρ); computed once per forward pass of a `ModuleWrapper`."""
        shared = current_pass()
        std = None if shared is None else shared.stds.get(self)
        if std is None or (torch.is_grad_enabled() and self.rho.requires_grad and not std.requires_grad):
            return rho_to_std(self.rho)
        return std

    @property
    def prior_follows(self) -> bool:
        """Whether the prior's standard deviation is learnt."""
        return self.prior.follows

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

    def center_prior(self, mean: Tensor) -> None:
        """Make `mean`, of the weight's shape, the mean of the Gaussian prior.

        Raises:
            ValueError: the prior is not Gaussian.
        """
        if not isinstance(self.prior, GaussianPrior):
            raise ValueError(f"only a Gaussian prior can be centered at weights, not {self.prior}")
        self.prior = self.prior.centered(mean)

    @torch.no_grad()
    def set_prior_to_posterior(self, mean: Tensor) -> None:
        """Make N(mean, σ²) itself the prior, with the values that `mean` and σ have now; the KL is then 0."""
        self.prior = GaussianPrior(mean.detach().clone(), rho_to_std(self.rho))

    @staticmethod
    def joint_kl(posteriors: Sequence[GaussianPosterior], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) in nats, summed over several posteriors; those with priors of one group as one long vector."""
        groups: dict[Hashable, list[tuple[Prior, Tensor, Tensor]]] = {}
        for posterior, mean in zip(posteriors, means, strict=True):
            prior = posterior.prior
            weights = prior, at_least_float32(mean), at_least_float32(posterior.std(mean))
            groups.setdefault(id(posterior) if prior.group is None else prior.group, []).append(weights)
        terms = []
        for members in groups.values():
            prior = members[0][0]
            rows = [[mean for _, mean, _ in members], [std for _, _, std in members]]
            if prior.group is not None:
                rows = [in_few_rows(tensors) for tensors in rows]
            terms += [prior.kl(mean, std) for mean, std in zip(*rows, strict=True)]
        return torch.stack(terms).sum()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        _upgrade_version_1(state_dict, prefix)
        inner = f"{prefix}prior."
        state = {key.removeprefix(inner): value for key, value in state_dict.items() if key.startswith(inner)}
        prior = prior_from_state(state)
        if prior is not None:
            if _differ(self.prior.description, prior.description):
                warnings.warn(f"the prior of the loaded weights, {prior}, replaces {self.prior}", stacklevel=2)
            self._set_prior(prior)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions disagree in something that both name; a mean that is a tensor is in neither."""
    return bool(one) and any(one[name] != other[name] for name in one.keys() & other.keys())


def _upgrade_version_1(state_dict: dict[str, Any], prefix: str) -> None:
    """Rewrite a state of before priors were modules.

    Its `_extra_state` was a tensor: [mean, std] of a Gaussian prior, the mean NaN where `prior_mu` held a tensor, or
    the bytes of another prior's JSON. A learnt deviation was `log_prior_sigma`.
    """
    state = state_dict.pop(f"{prefix}_extra_state", None)
    if state is None:
        return
    if state.dtype == torch.uint8:
        state_dict[f"{prefix}prior._extra_state"] = json.loads(bytes(state.tolist()))
    else:
        state_dict[f"{prefix}prior.mean"], state_dict[f"{prefix}prior.std"] = state
    for old, new in (("prior_mu", "prior.mean"), ("log_prior_sigma", "prior.log_std")):
        if f"{prefix}{old}" in state_dict:
            state_dict[f"{prefix}{new}"] = state_dict.pop(f"{prefix}{old}")
