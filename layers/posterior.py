"""Distributions over a layer's weights, and their Kullback-Leibler divergence to a prior.

A layer keeps the posterior *mean* μ where `torch.nn` keeps the weight (`layer.weight`, `layer.bias`),
so initialisers, checkpoints of deterministic twins and optimisers find it by its usual name. A
`Posterior` holds what is Bayesian about that tensor, its spread and its prior, and is asked about it
by passing the mean.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.kernels import gaussian_sums, in_few_rows, normal_like, spread


@dataclass(frozen=True)
class Priors:
    """The prior of every weight and where its posterior starts; `priors={…}` of a layer, checked.

    Attributes:
        prior_mu: mean of the Gaussian prior.
        prior_sigma: standard deviation of the Gaussian prior, above zero.
        posterior_mu_initial: (mean, std) of the normal that the posterior means start from; None
            keeps `torch.nn`'s own initialisation by fan-in.
        posterior_rho_initial: (mean, std) of the normal that ρ starts from, σ = softplus(ρ).
        posterior_log_alpha_initial: where log α of the alpha posterior starts.
    """

    prior_mu: float = 0.0
    prior_sigma: float = 1.0
    posterior_mu_initial: tuple[float, float] | None = None
    posterior_rho_initial: tuple[float, float] = (-5.0, 0.1)
    posterior_log_alpha_initial: float = -5.0

    def __post_init__(self) -> None:
        for name in ("prior_mu", "prior_sigma", "posterior_log_alpha_initial"):
            _require_finite(name, getattr(self, name))
        if self.prior_sigma <= 0:
            raise ValueError(f"prior_sigma must be above 0, got {self.prior_sigma}")
        for name in ("posterior_mu_initial", "posterior_rho_initial"):
            pair = getattr(self, name)
            if pair is None and name == "posterior_mu_initial":
                continue
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"{name} must be a pair (mean, std), got {pair!r}")
            for number in pair:
                _require_finite(name, number)
            if pair[1] < 0:
                raise ValueError(f"{name} must have a std of at least 0, got {pair[1]}")

    @classmethod
    def of(cls, given: Priors | Mapping[str, Any] | None) -> Priors:
        """The priors that a user's dict (or None, for the defaults) describes.

        Raises:
            ValueError: an unknown key (the nearest known one is named) or a value out of range.
        """
        if isinstance(given, Priors):
            return given
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ValueError(f"priors must be a dict, got {given!r}")
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)[0]
                raise ValueError(f"unknown prior {key!r}: did you mean {near!r}? Known: {known}")
        return cls(**given)


def _require_finite(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(f"{name} must be a number, got {number!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")


class Posterior(nn.Module):
    """A fully factorised normal around a mean that its owner keeps and passes in.

    A kind of posterior defines `std` and `joint_kl`; the rest follows. Tensors in and out have the shape
    of the weight.
    """

    @staticmethod
    def joint_kl(posteriors: Sequence[Any], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) in nats, summed over the weights of several posteriors of this kind: a scalar."""
        raise NotImplementedError

    def std(self, mean: Tensor) -> Tensor:
        """Standard deviation of every weight."""
        raise NotImplementedError

    def kl(self, mean: Tensor) -> Tensor:
        """KL(q‖p) in nats, summed over the weights: a scalar."""
        return self.joint_kl([self], [mean])

    def variance(self, mean: Tensor) -> Tensor:
        """Variance of every weight."""
        return self.std(mean).square()

    def perturbation(self, mean: Tensor) -> Tensor:
        """A draw from q less its mean."""
        return self.std(mean) * normal_like(mean)

    def sample(self, mean: Tensor) -> Tensor:
        """A draw from q, differentiable in the mean and the spread (Kingma & Welling 2014)."""
        return torch.addcmul(mean, self.std(mean), normal_like(mean))


class GaussianPosterior(Posterior):
    """q = N(μ, σ²) with σ = softplus(ρ); prior N(prior_mu, prior_sigma²) (Blundell et al. 2015, 3.2).

    Args:
        mean: the parameter whose posterior this is; ρ takes its shape, device and dtype.
        priors: the prior and the start of ρ. The prior is saved with the weights.
    """

    def __init__(self, mean: Tensor, priors: Priors) -> None:
        super().__init__()
        self.rho = nn.Parameter(nn.init.normal_(torch.empty_like(mean), *priors.posterior_rho_initial))
        self.kept: Tensor | None = None  # σ, for as long as `layers.base.spreads_kept` lasts
        self.prior_mu, self.prior_sigma = float(priors.prior_mu), float(priors.prior_sigma)

    def std(self, mean: Tensor) -> Tensor:
        return spread(self.rho) if self.kept is None else self.kept

    @staticmethod
    def joint_kl(posteriors: Sequence[GaussianPosterior], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) = Σ log(σ_p/σ) + (σ² + (μ − μ_p)²) / (2σ_p²) − ½, in nats.

        From ∫ q log q = −½ log(2πeσ²) and ∫ q log p = −½ log(2πσ_p²) − (σ² + (μ−μ_p)²) / (2σ_p²).
        """
        groups: dict[tuple[float, float], list[tuple[Tensor, Tensor]]] = {}
        for posterior, mean in zip(posteriors, means, strict=True):
            group = groups.setdefault((posterior.prior_mu, posterior.prior_sigma), [])
            group.append((_at_least_float32(mean), _at_least_float32(posterior.std(mean))))
        terms = []
        for (prior_mu, prior_sigma), weights in groups.items():
            for mean, std in zip(*map(in_few_rows, zip(*weights, strict=True)), strict=True):
                squares, logs = gaussian_sums(mean, std, prior_mu)
                terms.append(squares / (2 * prior_sigma**2) - logs + mean.numel() * (math.log(prior_sigma) - 0.5))
        return torch.stack(terms).sum()

    def get_extra_state(self) -> Tensor:
        """The prior's mean and standard deviation, which `state_dict` keeps beside ρ."""
        return torch.tensor([self.prior_mu, self.prior_sigma], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the prior from a `state_dict`."""
        self.prior_mu, self.prior_sigma = state.tolist()


class AlphaPosterior(Posterior):
    """q = N(μ, α·μ²), the variational dropout posterior, under an automatic-relevance prior.

    Args:
        mean: the parameter whose posterior this is.
        alpha_shape: the shape of log α, broadcast against the mean.
        priors: where log α starts.

    Raises:
        ValueError: `alpha_shape` does not broadcast to the mean's shape.
    """

    def __init__(self, mean: Tensor, alpha_shape: Sequence[int], priors: Priors) -> None:
        super().__init__()
        try:
            fits = torch.broadcast_shapes(tuple(alpha_shape), mean.shape) == mean.shape
        except (RuntimeError, TypeError):
            fits = False
        if not fits:
            raise ValueError(
                f"alpha_shape {tuple(alpha_shape)} does not broadcast to the weight's shape {tuple(mean.shape)}"
            )
        self.log_alpha = nn.Parameter(mean.new_full(tuple(alpha_shape), priors.posterior_log_alpha_initial))

    def std(self, mean: Tensor) -> Tensor:
        return (0.5 * self.log_alpha).exp() * mean.abs()

    @staticmethod
    def joint_kl(posteriors: Sequence[AlphaPosterior], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) = Σ ½ log(1 + 1/α), in nats, to the prior N(0, τ²) at its best τ.

        KL(N(μ, σ²) ‖ N(0, τ²)) = log(τ/σ) + (σ² + μ²)/(2τ²) − ½ is least at τ² = μ² + σ², where it is
        ½ log((μ² + σ²)/σ²) = ½ log(1 + 1/α). A shared α counts as often as it is shared.
        """
        terms = []
        for posterior, mean in zip(posteriors, means, strict=True):
            log_alpha = _at_least_float32(posterior.log_alpha)
            terms.append(F.softplus(-log_alpha).sum() * (0.5 * mean.numel() / log_alpha.numel()))
        return torch.stack(terms).sum()


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Sums over many half-precision weights would lose the KL's digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
