"""What posteriors whose prior can be chosen have in common."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels import at_least_float32, in_few_rows
from ..priors import GaussianPrior, Prior, Priors, prior_from_state
from .posterior import Posterior, broadcasts


class PosteriorWithPrior(Posterior):
    """A posterior with a prior that is saved with the weights, and that loading them brings along.

    Args:
        mean: the parameter whose posterior this is.
        priors: the prior and the start of the posterior.

    Attributes:
        prior: the prior.
        shape: of the weight.
        known_priors: the kinds of priors whose KL the family knows.

    Raises:
        ValueError: a prior of another kind, or one whose shape does not broadcast to the mean's.
    """

    prior: Prior
    known_priors: ClassVar[tuple[type[Prior], ...]] = (Prior,)

    def __init__(self, mean: Tensor, priors: Priors) -> None:
        super().__init__()
        self.shape = mean.shape
        self._set_prior(priors.make_prior().for_shape(mean.shape), mean)

    @classmethod
    def for_parameter(cls, layer: Any, mean: Tensor, priors: Priors, **options: Any) -> Posterior:
        """See `Posterior.for_parameter`."""
        return cls(mean, priors, **options)

    def set_prior(self, prior: Prior) -> None:
        """See `Posterior.set_prior`."""
        self._set_prior(prior, next(self.parameters()))

    def _set_prior(self, prior: Prior, like: Tensor) -> None:
        if not isinstance(prior, self.known_priors):
            raise ValueError(f"the {self.family} posterior needs a Gaussian prior, got {prior}")
        if not broadcasts(prior.shape, self.shape):
            raise ValueError(f"a prior of shape {tuple(prior.shape)} does not broadcast to weights {tuple(self.shape)}")
        self.prior = prior.to(like)

    @property
    def prior_follows(self) -> bool:
        """Whether the prior's standard deviation is learned."""
        return self.prior.follows

    def center_prior(self, mean: Tensor) -> None:
        """See `Posterior.center_prior`."""
        if not isinstance(self.prior, GaussianPrior):
            raise ValueError(f"only a Gaussian prior can be centered at weights, not {self.prior}")
        self.prior = self.prior.centered(mean)

    @torch.no_grad()
    def as_prior(self, mean: Tensor) -> Prior:
        """See `Posterior.as_prior`; for independent normals alone."""
        if self.dependence(mean) is not None:
            return super().as_prior(mean)
        return GaussianPrior(mean.detach().clone(), self.std(mean).detach().clone())

    def dependence(self, mean: Tensor) -> Tensor | None:
        """The entropy of independent normals of the same variances minus H(q), in nats; None for 0.

        KL(q‖p) is this much more than the KL of those normals where p judges q by its variances alone, as a Gaussian
        prior does that is independent over the weights.
        """
        return None

    def entropy(self, mean: Tensor) -> Tensor:
        """H(q) in nats, summed over the weights: a scalar."""
        dependence = self.dependence(mean)
        return super().entropy(mean) if dependence is None else super().entropy(mean) - dependence

    @staticmethod
    def joint_kl(posteriors: Sequence[PosteriorWithPrior], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) in nats, summed over several posteriors; those with priors of one group as one long vector."""
        groups: dict[Hashable, list[tuple[Prior, Tensor, Tensor]]] = {}
        terms = []
        for posterior, mean in zip(posteriors, means, strict=True):
            prior = posterior.prior
            weights = prior, at_least_float32(mean), at_least_float32(posterior.std(mean))
            groups.setdefault(id(posterior) if prior.group is None else prior.group, []).append(weights)
            if (dependence := posterior.dependence(mean)) is not None:
                terms.append(dependence)
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
        is_own = not self.prior.description and state.keys() == self.prior.state_dict().keys()  # what loads into itself
        prior = None if is_own else prior_from_state(state)
        if prior is not None:
            if _differ(self.prior.description, prior.description):
                warnings.warn(f"the prior of the loaded weights, {prior}, replaces {self.prior}", stacklevel=2)
            self.set_prior(prior)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions disagree in something that both name; a mean that is a tensor is in neither."""
    return bool(one) and any(one[name] != other[name] for name in one.keys() & other.keys())


def _upgrade_version_1(state_dict: dict[str, Any], prefix: str) -> None:
    """Rewrite a state of before priors were modules.

    Its `_extra_state` was a tensor: [mean, std] of a Gaussian prior, the mean NaN where `prior_mu` held a tensor, or
    the bytes of another prior's JSON. A learned deviation was `log_prior_sigma`.
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
