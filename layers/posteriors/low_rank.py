"""A Gaussian posterior with a covariance of low rank beside its diagonal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..estimators import Estimator, bbb, lrt, output_moments
from ..kernels import RHO_FLOOR, at_least_float32, normal_like, rho_to_std, std_to_rho
from ..priors import GaussianPrior, Prior, Priors
from .gaussian import GaussianPosterior
from .posterior import Noise, Option, Posterior, at_least_one


def low_rank_lrt(layer: Any, input: Tensor, *more: Any) -> Tensor:
    """Local reparameterization: `op(x, μ) + sqrt(op(x², σ²)) ⊙ ε + Σ_k op(x, L_k) z_k`, with z per example.

    It is exact for a linear layer, as `lrt` is; in a convolution, the last term has the covariance of all positions.
    """
    output = lrt(layer, input, *more)
    examples = len(output) if output.dim() + layer.feature_axis > 0 else 1  # one, if it has no axis
    for direction in layer.posterior["weight"].factor:
        noise = normal_like(output.new_empty((examples, *(1 for _ in output.shape[1:]))))
        output = output + layer.operation(input, direction, None, *more) * noise
    return output


class LowRankPosterior(GaussianPosterior):
    """q = N(μ, diag(σ²) + Σ_k L_k L_kᵀ) over the weights of a tensor, σ = softplus(ρ).

    Beside its own noise each weight moves along k directions with all the others (Ong, Nott & Smith 2018; Swiatkowski
    et al. 2020 tie only deviations). Every direction has as many parameters as the weight, and 'lrt' takes a further
    operation per direction, so it is meant for the last layers, `to_bayesian(net, layers="fc*", posterior="low_rank")`.

    Args:
        mean: the parameter whose posterior this is; ρ takes its shape, device and dtype.
        priors: the prior, a Gaussian one, and the start of ρ. The directions start at a hundredth of its variance.
        rank: k.

    Raises:
        ValueError: another prior, or one whose shape does not broadcast to the mean's.
    """

    family: ClassVar[str] = "low_rank"
    options: ClassVar[dict[str, Option]] = {"rank": (2, at_least_one)}
    estimators: ClassVar[dict[str, Estimator]] = {"lrt": low_rank_lrt, "bbb": bbb}
    known_priors: ClassVar[tuple[type[Prior], ...]] = (GaussianPrior,)

    def __init__(self, mean: Tensor, priors: Priors, rank: int = 2) -> None:
        super().__init__(mean, priors)
        with torch.no_grad():
            self.factor = nn.Parameter(
                0.1 / rank**0.5 * rho_to_std(self.rho) * torch.randn_like(mean.expand(rank, *mean.shape))
            )

    @classmethod
    def for_parameter(cls, layer: Any, mean: Tensor, priors: Priors, **options: Any) -> Posterior:
        """The same for a matrix or a kernel; for a vector, such as a bias, the Gaussian posterior."""
        return GaussianPosterior(mean, priors) if mean.dim() < 2 else cls(mean, priors, **options)

    def deviations(self) -> list[nn.Parameter]:
        """ρ: the directions are learned as means are."""
        return [self.rho]

    def std(self, mean: Tensor) -> Tensor:
        """√(σ² + Σ_k L_k²)."""
        return torch.hypot(super().std(mean), torch.linalg.vector_norm(self.factor, dim=0))

    def independent_variance(self, mean: Tensor) -> Tensor:
        """σ²."""
        return super().std(mean).square()

    def directions(self) -> Tensor:
        """L: [k, *weight]."""
        return self.factor

    @torch.no_grad()
    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """See `Posterior.set_std_in_proportion`; the directions keep their share of the variance."""
        scale = (ratio * mean.abs()).clamp_min(1e-6) / self.std(mean)
        self.rho.copy_(std_to_rho(super().std(mean) * scale).clamp_min(RHO_FLOOR))
        self.factor.mul_(scale)

    def silence(self, mask: Tensor) -> None:
        """See `Posterior.silence`."""
        super().silence(mask)
        with torch.no_grad():
            self.factor[:, mask] = 0

    def dependence(self, mean: Tensor) -> Tensor:
        """½ Σ log(1 + Σ_k L_k²/σ²) − ½ log det(I + LᵀΣ⁻¹L) with Σ = diag(σ²), by the determinant lemma, in nats."""
        ratio = (at_least_float32(self.factor) / at_least_float32(super().std(mean))).flatten(1)
        gram = ratio @ ratio.mT + torch.eye(len(ratio), dtype=ratio.dtype, device=ratio.device)
        return 0.5 * ratio.square().sum(0).log1p().sum() - torch.linalg.cholesky(gram).diagonal().log().sum()

    def perturbation(self, mean: Tensor) -> Tensor:
        """A draw from q minus its mean."""
        return self.sampler(torch.zeros_like(mean))(normal_like)

    def sampler(self, mean: Tensor) -> Callable[[Noise], Tensor]:
        """See `Posterior.sampler`."""
        std = super().std(mean)

        def sample(noise: Noise) -> Tensor:
            shared = torch.tensordot(noise(self.factor.new_empty(len(self.factor))), self.factor, 1)
            return torch.addcmul(mean + shared, std, noise(mean))

        return sample

    def output_moments(self, layer: Any, input: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """Mean op(x, μ) and variance op(x², σ²) + Σ_k op(x, L_k)²."""
        mean, variance = output_moments(layer, input, *more)
        for direction in self.factor:
            variance = variance + layer.operation(input, direction, None, *more).square()
        return mean, variance
