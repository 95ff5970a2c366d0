"""Distributions over a layer's weights, and their Kullback-Leibler divergence to a prior.

A layer keeps the posterior *mean* μ where `torch.nn` keeps the weight (`layer.weight`, `layer.bias`),
so initializers, checkpoints of deterministic twins and optimizers find it by its usual name. A
`Posterior` holds what is Bayesian about that tensor, its spread and its prior, and is asked about it
by passing the mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

from layers.kernels import RHO_FLOOR, gaussian_sums, in_few_rows, normal_like, rho_to_std, std_to_rho
from layers.priors import Priors, as_distribution, as_plain


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

    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """Set every σ to `ratio · |μ|`: MOPED's posterior (Krishnan et al. 2020, section 3)."""
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
    """q = N(μ, σ²) with σ = softplus(ρ); prior N(prior_mu, prior_sigma²) (Blundell et al. 2015, 3.2), or any other.

    Args:
        mean: the parameter whose posterior this is; ρ takes its shape, device and dtype.
        priors: the prior and the start of ρ. The prior is saved with the weights.

    Raises:
        ValueError: a prior whose shape does not broadcast to the mean's.
    """

    prior_mu: Tensor | float
    log_prior_sigma: nn.Parameter | None

    def __init__(self, mean: Tensor, priors: Priors) -> None:
        super().__init__()
        self.rho = nn.Parameter(nn.init.normal_(torch.empty_like(mean), *priors.posterior_rho_initial))
        self._cached_std: Tensor | None = None  # σ, for as long as `layers.base.cached_stds` lasts
        self.prior_mu, self.prior_sigma = float(priors.prior_mu), float(priors.prior_sigma)
        learnt = nn.Parameter(mean.new_tensor(math.log(self.prior_sigma))) if priors.learn_prior_sigma else None
        self.register_parameter("log_prior_sigma", learnt)
        self.prior = None if priors.prior is None else as_plain(priors.prior)
        if self.prior is not None:
            made = as_distribution(self.prior)
            shape = made.batch_shape + made.event_shape
            if not _broadcasts(shape, mean.shape):
                raise ValueError(f"a prior of shape {tuple(shape)} does not broadcast to weights {tuple(mean.shape)}")

    def std(self, mean: Tensor) -> Tensor:
        if self._cached_std is None or (
            torch.is_grad_enabled() and self.rho.requires_grad and not self._cached_std.requires_grad
        ):
            return rho_to_std(self.rho)  # what is kept may be another thread's, without gradients
        return self._cached_std

    @torch.no_grad()
    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """σ is at least 1e-6, from which a weight of 0 can still learn one."""
        self.rho.copy_(std_to_rho((ratio * mean.abs()).clamp_min(1e-6)).clamp_min(RHO_FLOOR))

    @torch.no_grad()
    def center_prior(self, at: Tensor) -> None:
        """Make `at`, of the weight's shape, the mean of the Gaussian prior.

        Raises:
            ValueError: the prior is not Gaussian.
        """
        if self.prior is not None:
            raise ValueError(f"only a Gaussian prior can be centred at weights, not {self.prior['family']}")
        del self.prior_mu
        self.register_buffer("prior_mu", at.detach().clone())

    @staticmethod
    def joint_kl(posteriors: Sequence[GaussianPosterior], means: Sequence[Tensor]) -> Tensor:
        """KL(q‖p) = Σ log(σ_p/σ) + (σ² + (μ − μ_p)²) / (2σ_p²) − ½, in nats; of another prior see `_other_kl`.

        From ∫ q log q = −½ log(2πeσ²) and ∫ q log p = −½ log(2πσ_p²) − (σ² + (μ−μ_p)²) / (2σ_p²).
        """
        groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        terms = []
        for posterior, mean in zip(posteriors, means, strict=True):
            weights = _at_least_float32(mean), _at_least_float32(posterior.std(mean))
            if posterior.prior is not None:
                terms.append(_other_kl(posterior.prior, *weights))
                continue
            centre, sigma = posterior.prior_mu, posterior.log_prior_sigma
            if isinstance(centre, Tensor):
                weights, centre = (weights[0] - centre, weights[1]), 0.0
            if sigma is None:
                groups.setdefault((centre, posterior.prior_sigma), []).append(weights)
            else:
                terms.append(_gaussian_kl([weights], centre, _at_least_float32(sigma).exp()))
        terms += [_gaussian_kl(weights, centre, sigma) for (centre, sigma), weights in groups.items()]
        return torch.stack(terms).sum()

    def get_extra_state(self) -> Tensor:
        """The prior, which `state_dict` keeps beside ρ: its mean and deviation, or another one's text."""
        if self.prior is not None:
            return torch.tensor(list(json.dumps(self.prior).encode()), dtype=torch.uint8)
        mean = math.nan if isinstance(self.prior_mu, Tensor) else self.prior_mu  # a tensor is kept as a buffer
        return torch.tensor([mean, self.prior_sigma], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the prior from a `state_dict`."""
        if state.dtype == torch.uint8:
            self.prior = json.loads(bytes(state.tolist()))
            return
        mean, self.prior_sigma = state.tolist()
        self.prior = None
        if not math.isnan(mean):
            del self.prior_mu
            self.prior_mu = mean

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if f"{prefix}prior_mu" in state_dict:
            self.center_prior(state_dict[f"{prefix}prior_mu"].to(self.rho))
        elif isinstance(self.prior_mu, Tensor) and f"{prefix}_extra_state" in state_dict:
            del self.prior_mu
            self.prior_mu = 0.0  # until the extra state says
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _gaussian_kl(weights: Sequence[tuple[Tensor, Tensor]], prior_mu: float, prior_sigma: Tensor | float) -> Tensor:
    """Of (μ, σ) pairs to one Gaussian prior."""
    log_sigma = prior_sigma.log() if isinstance(prior_sigma, Tensor) else math.log(prior_sigma)
    total: Any = 0.0
    for mean, std in zip(*map(in_few_rows, zip(*weights, strict=True)), strict=True):
        squares, logs = gaussian_sums(mean, std, prior_mu)
        total = total + squares / (2 * prior_sigma**2) - logs + mean.numel() * (log_sigma - 0.5)
    return total


def _other_kl(prior: dict[str, Any], mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std²)‖p): torch's closed form, or else an unbiased estimate.

    KL = −H(q) − E_q[log p], with H(q) = Σ ½ log(2πeσ²) exact and the expectation by one draw.
    """
    p = as_distribution(prior, like=mean)
    try:
        return distributions.kl_divergence(distributions.Normal(mean, std, validate_args=False), p).sum()
    except NotImplementedError:
        entropy = std.log().sum() + 0.5 * math.log(2 * math.pi * math.e) * std.numel()
        return -entropy - p.log_prob(torch.addcmul(mean, std, normal_like(mean))).sum()


class AlphaPosterior(Posterior):
    """q = N(μ, α·μ²), the variational dropout posterior, under an automatic-relevance prior.

    Args:
        mean: the parameter whose posterior this is.
        alpha_shape: the shape of log α, broadcast against the mean.
        priors: where log α starts.

    Raises:
        ValueError: `alpha_shape` does not broadcast to the mean's shape, or `priors` asks for another prior.
    """

    def __init__(self, mean: Tensor, alpha_shape: Sequence[int], priors: Priors) -> None:
        super().__init__()
        if not _broadcasts(alpha_shape, mean.shape):
            raise ValueError(
                f"alpha_shape {tuple(alpha_shape)} does not broadcast to the weight's shape {tuple(mean.shape)}"
            )
        if priors.prior is not None or priors.learn_prior_sigma:
            raise ValueError("the alpha posterior has a prior of its own: leave out prior and learn_prior_sigma")
        self.log_alpha = nn.Parameter(mean.new_full(tuple(alpha_shape), priors.posterior_log_alpha_initial))

    def std(self, mean: Tensor) -> Tensor:
        return (0.5 * self.log_alpha).exp() * mean.abs()

    @torch.no_grad()
    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """α = ratio²."""
        self.log_alpha.fill_(2 * math.log(ratio))

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


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    try:
        return torch.broadcast_shapes(tuple(shape), to) == to
    except (RuntimeError, TypeError):
        return False


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Sums over many half-precision weights would lose the KL's digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
