"""What every posterior over a weight tensor is.

A layer keeps the posterior *mean* μ where `torch.nn` keeps the weight (`layer.weight`, `layer.bias`),
so initializers, checkpoints of deterministic twins and optimizers find it by its usual name. A
`Posterior` holds what is Bayesian about that tensor, its standard deviation and its prior; the mean is
passed to each of its methods. A family whose parameter is not the mean says by `location` what the mean is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..estimators import ESTIMATORS, Estimator, output_moments
from ..kernels import at_least_float32, normal_like
from ..priors import Prior, Priors

Noise = Callable[[Tensor], Tensor]  # ε ~ N(0, 1) of the shape of a tensor
Option = tuple[Any, Callable[[Any], Any]]  # its default, and what returns a checked value or raises a ValueError


class Posterior(nn.Module):
    """A fully factorized normal around a mean that the layer keeps and passes in.

    A family defines `family`, `std`, `joint_kl`, `prior_follows`, `set_std_in_proportion` and `silence`; the rest
    follows. Tensors have the shape of the weight.

    Attributes:
        family: its name in `posterior=…`.
        options: what `posterior={"family": …}` may say besides, by name.
        estimators: the estimators that work with it, by name, some perhaps in a form of its own.
        pulls_on_mean: whether the prior pulls on the mean, which then needs no weight decay.
        components: of how many equally likely components q is the mixture.
    """

    family: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = {}
    estimators: ClassVar[Mapping[str, Estimator]] = ESTIMATORS
    pulls_on_mean: ClassVar[bool] = True
    components: int = 1

    @classmethod
    def for_parameter(cls, layer: Any, mean: Tensor, priors: Priors, **options: Any) -> Posterior | None:
        """The posterior of a parameter of a layer; None for a parameter that stays a point.

        Args:
            layer: the Bayesian layer.
            mean: the parameter.
            priors: the prior and the start of the posterior.
            options: those of the family, all of them.

        Raises:
            ValueError: the family does not support the layer or the prior.
        """
        raise NotImplementedError

    @staticmethod
    def joint_kl(posteriors: Sequence[Any], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) in nats, summed over the weights of several posteriors of this family: a scalar."""
        raise NotImplementedError

    def std(self, mean: Tensor) -> Tensor:
        """Standard deviation of every weight."""
        raise NotImplementedError

    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """Set every σ to `ratio · |μ|`: MOPED's posterior (Krishnan et al. 2020, section 3)."""
        raise NotImplementedError

    def silence(self, mask: Tensor) -> None:
        """Take the variance of the weights in a mask of the weight's shape, whose means are 0."""
        raise NotImplementedError

    def center_prior(self, mean: Tensor) -> None:
        """Make `mean`, of the weight's shape, the mean of the Gaussian prior.

        Raises:
            ValueError: the prior cannot be centered.
        """
        raise ValueError(f"the prior of the {self.family} posterior cannot be centered: leave out prior_at_means")

    def set_prior(self, prior: Prior) -> None:
        """Replace the prior by another, which is moved to the device and dtype of the weights.

        Raises:
            ValueError: the family has a prior of its own or no KL to such a prior, or its shape does not fit.
        """
        raise ValueError(f"the {self.family} posterior has a prior of its own")

    def as_prior(self, mean: Tensor) -> Prior:
        """q itself, as it is now, as a prior, to which the KL is 0.

        Raises:
            ValueError: the KL to such a prior is not known.
        """
        raise ValueError(f"the {self.family} posterior cannot become a prior: train with the gaussian or k_tied one")

    def location(self, weight: Tensor) -> Tensor:
        """The mean of q, where `weight` is the layer's parameter: by default itself."""
        return weight

    def output_moments(self, layer: Any, input: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of the outputs of a layer whose weight has this posterior: see `estimators`."""
        return output_moments(layer, input, *more)

    @property
    def prior_follows(self) -> bool:
        """Whether the prior follows the posterior, so that no scale of the weights is preferred."""
        raise NotImplementedError

    def deviations(self) -> list[nn.Parameter]:
        """The parameters that set standard deviations and learn at a rate of their own, such as ρ."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("prior.")]

    def kl(self, mean: Tensor) -> Tensor:
        """KL(q‖p) in nats, summed over the weights: a scalar."""
        return self.joint_kl([self], [mean])

    def entropy(self, mean: Tensor) -> Tensor:
        """H(q) = Σ ½ log(2πeσ²) in nats, summed over the weights: a scalar."""
        return at_least_float32(self.std(mean)).log().sum() + 0.5 * math.log(2 * math.pi * math.e) * mean.numel()

    def variance(self, mean: Tensor) -> Tensor:
        """Variance of every weight."""
        return self.std(mean).square()

    def independent_variance(self, mean: Tensor) -> Tensor:
        """Variance of every weight without that along `directions`."""
        return self.variance(mean)

    def directions(self) -> Tensor | None:
        """[k, *weight]: what all weights move along together, by one ε ~ N(0, 1) per direction; None for nothing."""
        return None

    @property
    def goes_through_moments(self) -> bool:
        """Whether means and variances say enough of the weights for the room `moments`."""
        return True

    def factor_moments(self, component: int) -> tuple[tuple[Tensor, Tensor | None], ...] | None:
        """Where a component of q is a known matrix times r sᵀ, mean and variance (None for 0) of r and of s."""
        return None

    def perturbation(self, mean: Tensor) -> Tensor:
        """A draw from q minus its mean."""
        return self.std(mean) * normal_like(mean)

    def sample(self, mean: Tensor) -> Tensor:
        """A draw from q, differentiable in the mean and the standard deviation (Kingma & Welling 2014)."""
        return self.sampler(mean)(normal_like)

    def sampler(self, mean: Tensor) -> Callable[[Noise], Tensor]:
        """A function that makes a draw of a source of noise; what all draws have in common is computed here, once."""
        std = self.std(mean)
        return lambda noise: torch.addcmul(mean, std, noise(mean))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})  # what torch keeps beside the tensors, in files too
        metadata.get(prefix.removesuffix("."), {})["family"] = self.family

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *arguments: Any
    ) -> None:
        family = local_metadata.get("family", self.family)  # a file from before, or of another format, does not say
        if family != self.family:
            raise ValueError(
                f"the state of {prefix.removesuffix('.')} is of the {family} family, and not of {self.family}"
            )
        own = _parts(name for name, _ in self.named_parameters())
        theirs = _parts(key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)) - {*self._buffers}
        if theirs and theirs != own:
            raise ValueError(
                f"the state of {prefix.removesuffix('.')} is of another family than {self.family}: it has "
                f"{', '.join(sorted(theirs))} and not {', '.join(sorted(own))}"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


def _parts(names: Iterable[str]) -> set[str]:
    """What the names in a state begin with, but for what tells of a prior."""
    return {name.split(".")[0] for name in names if "prior" not in name and name != "_extra_state"}


def at_least_one(value: Any) -> int:
    """An option that is an integer ≥ 1."""
    if type(value) is not int or value < 1:
        raise ValueError("an integer ≥ 1")
    return value


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of `shape` broadcasts to the shape `to` without widening it."""
    try:
        return torch.broadcast_shapes(tuple(shape), to) == to
    except (RuntimeError, TypeError):
        return False
