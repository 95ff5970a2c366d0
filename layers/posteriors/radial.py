"""The radial posterior, whose draws are as far from the mean in many dimensions as in one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ..estimators import Estimator, bbb, flipout
from ..kernels import normal_like
from ..priors import CorrelatedGaussianPrior, GaussianPrior, Prior
from .gaussian import GaussianPosterior
from .posterior import Noise

EULER = 0.5772156649015329


class RadialPosterior(GaussianPosterior):
    """w = μ + σ ⊙ ε/‖ε‖ · r with ε ~ N(0, I) and r ~ |N(0, 1)| (Farquhar et al. 2020, eq. 3), over the whole tensor.

    The D weights of a tensor are uncorrelated, with the variances σ²/D, and not independent: σ = softplus(ρ) is the
    length of a draw of the tensor and not of a weight, so ρ starts where the Gaussian posterior's does and a weight's
    own deviation is √D times smaller. Outputs have no closed form, so 'lrt' does not work with it; the signs of
    'flipout' leave the distribution of ε/‖ε‖ as it is. The moments of an output are exact, and that it is normal is an
    approximation.

    Args:
        mean: the parameter whose posterior this is; ρ takes its shape, device and dtype.
        priors: the prior, a Gaussian one, and the start of ρ.

    Raises:
        ValueError: another prior, or one whose shape does not broadcast to the mean's.
    """

    family: ClassVar[str] = "radial"
    estimators: ClassVar[dict[str, Estimator]] = {"bbb": bbb, "flipout": flipout}
    known_priors: ClassVar[tuple[type[Prior], ...]] = (GaussianPrior, CorrelatedGaussianPrior)

    def std(self, mean: Tensor) -> Tensor:
        """σ/√D."""
        return super().std(mean) / math.sqrt(mean.numel())

    def set_std_in_proportion(self, mean: Tensor, ratio: float) -> None:
        """Set σ/√D to ratio · |μ|."""
        super().set_std_in_proportion(mean, ratio * math.sqrt(mean.numel()))

    def dependence(self, mean: Tensor) -> Tensor:
        """What D independent normals of variance 1/D have in entropy beyond ε/‖ε‖ · r, in nats.

        The normals have D/2 log(2πe/D). In spherical coordinates the density of ε/‖ε‖ · r at distance r from 0 is
        p(r) / (S r^(D−1)) with S = 2π^(D/2)/Γ(D/2), the surface of the unit sphere, so its entropy is
        h(r) + log S + (D−1) E[log r] with h(r) = ½ log(πe/2) and E[log r] = −½(γ + log 2). Both gain Σ log σ.
        """
        size = mean.numel()
        surface = math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)
        radial = 0.5 * math.log(0.5 * math.pi * math.e) + surface - 0.5 * (size - 1) * (EULER + math.log(2))
        difference = 0.5 * size * math.log(2 * math.pi * math.e / size) - radial
        return self.rho.new_full((), difference, dtype=torch.promote_types(self.rho.dtype, torch.float32))

    def perturbation(self, mean: Tensor) -> Tensor:
        """A draw from q minus its mean."""
        return self.sampler(torch.zeros_like(mean))(normal_like)

    def sampler(self, mean: Tensor) -> Callable[[Noise], Tensor]:
        """See `Posterior.sampler`."""
        std = super().std(mean)

        def sample(noise: Noise) -> Tensor:
            direction, distance = noise(mean), noise(mean.new_empty(()))  # of either sign, as ε is
            return torch.addcmul(mean, std, direction * (distance / torch.linalg.vector_norm(direction)))

        return sample
