"""The variational dropout posterior: a standard deviation in proportion to the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import at_least_float32
from ..priors import Prior, Priors
from .posterior import Option, Posterior, broadcasts


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError("a shape such as (1, 1)")
    return tuple(value)


class AlphaPosterior(Posterior):
    """q = N(μ, α·μ²) under an automatic-relevance prior.

    Args:
        mean: the parameter whose posterior this is.
        alpha_shape: the shape of log α, which broadcasts to the mean's.
        priors: where log α starts.

    Raises:
        ValueError: `alpha_shape` does not broadcast to the mean's shape, or `priors` asks for another prior.
    """

    family: ClassVar[str] = "alpha"
    options: ClassVar[dict[str, Option]] = {"alpha_shape": ((1, 1), _shape)}
    pulls_on_mean: ClassVar[bool] = False  # the prior follows the weights

    def __init__(self, mean: Tensor, alpha_shape: Sequence[int], priors: Priors) -> None:
        super().__init__()
        if not broadcasts(alpha_shape, mean.shape):
            raise ValueError(
                f"alpha_shape {tuple(alpha_shape)} does not broadcast to the weight's shape {tuple(mean.shape)}"
            )
        if priors.prior is not None or priors.learn_prior_sigma:
            raise ValueError("the alpha posterior has a prior of its own: leave out prior and learn_prior_sigma")
        self.log_alpha = nn.Parameter(mean.new_full(tuple(alpha_shape), priors.posterior_log_alpha_initial))

    @classmethod
    def for_parameter(cls, layer: Any, mean: Tensor, priors: Priors, **options: Any) -> Posterior:
        """The same, with the shape of log α for a bias: its length along the outputs of the weight's."""
        shape = options["alpha_shape"]
        if mean.dim() <= 1:
            weight_dim = max(parameter.dim() for parameter in layer.parameters(recurse=False))
            outputs = shape[layer.outputs_axis] if len(shape) == weight_dim else 1
            shape = (outputs,) if outputs in (1, len(mean)) else (1,)
        return cls(mean, shape, priors)

    def std(self, mean: Tensor) -> Tensor:
        """σ = √α · |μ|."""
        return (0.5 * self.log_alpha).exp() * mean.abs()

    def silence(self, mask: Tensor) -> None:
        """Nothing is left to do: σ is 0 where μ is."""

    def center_prior(self, mean: Tensor) -> None:
        """Refuse: the prior has no mean to move."""
        raise ValueError("only the prior of a Gaussian posterior can be centered: leave out alpha_shape")

    def as_prior(self, mean: Tensor) -> Prior:
        """See `Posterior.as_prior`."""
        raise ValueError(
            "the alpha posterior has a prior of its own, which no posterior can replace: train without alpha_shape"
        )

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
