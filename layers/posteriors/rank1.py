"""The rank-1 posterior: a matrix that is known, times random factors of its outputs and of its inputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..estimators import Estimator, bbb
from ..kernels import RHO_FLOOR, at_least_float32, normal_like, rho_to_std, std_to_rho
from ..passes import current_pass
from ..priors import GaussianPrior, Priors
from .posterior import Noise, Option, Posterior, at_least_one


class PointFactor(Posterior):
    """Vectors [components, features] that are learned, and known: those of BatchEnsemble (Wen et al. 2020).

    Args:
        signs: where the vectors start, ±1.
        priors: where ρ starts, and the deviation of the prior.
    """

    family: ClassVar[str] = "point"

    def __init__(self, signs: Tensor, priors: Priors) -> None:
        super().__init__()
        self.mean = nn.Parameter(signs.clone())

    @property
    def prior_follows(self) -> bool:
        """There is no prior."""
        return False

    def deviations(self) -> list[nn.Parameter]:
        """None."""
        return []

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of every feature, and for Cauchy factors, which have none, the scale."""
        return torch.zeros_like(self.mean)

    def draw(self, index: Tensor, noise: Noise) -> Tensor:
        """A draw [*index, features] of the components at `index`."""
        return self.mean[index]

    def total_kl(self) -> Tensor:
        """KL(q‖p) in nats, summed over components and features."""
        return torch.zeros((), device=self.mean.device)

    def total_entropy(self) -> Tensor:
        """H(q) in nats, summed over components and features."""
        return self.total_kl()


class GaussianFactor(PointFactor):
    """Vectors with q = N(μ, σ²), σ = softplus(ρ), and the prior N(±1, σ_p²) around where μ starts.

    Args:
        signs: where μ starts, ±1.
        priors: `posterior_rho_initial`, `prior_sigma` and `learn_prior_sigma`; the other fields are not used.
    """

    family: ClassVar[str] = "gaussian factor"

    def __init__(self, signs: Tensor, priors: Priors) -> None:
        super().__init__(signs, priors)
        self.rho = nn.Parameter(nn.init.normal_(torch.empty_like(signs), *priors.posterior_rho_initial))
        if priors.learn_prior_sigma == "channel":
            raise ValueError("the rank1 posterior learns one prior_sigma per factor: give learn_prior_sigma True")
        sigma = None if priors.learn_prior_sigma else signs.new_full((), priors.prior_sigma)
        self.prior = GaussianPrior(signs.clone(), sigma)

    @property
    def prior_follows(self) -> bool:
        """Whether the prior's standard deviation is learned."""
        return self.prior.follows

    def deviations(self) -> list[nn.Parameter]:
        """ρ."""
        return [self.rho]

    @property
    def deviation(self) -> Tensor:
        """σ, or the scale γ."""
        return rho_to_std(self.rho)

    def draw(self, index: Tensor, noise: Noise) -> Tensor:
        """μ + σ ⊙ ε."""
        mean = self.mean[index]
        return torch.addcmul(mean, self.deviation[index], noise(mean))

    def total_kl(self) -> Tensor:
        """That of normals."""
        return self.prior.kl(at_least_float32(self.mean), at_least_float32(self.deviation))

    def total_entropy(self) -> Tensor:
        """Σ ½ log(2πeσ²)."""
        return at_least_float32(self.deviation).log().sum() + 0.5 * math.log(2 * math.pi * math.e) * self.mean.numel()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        follows = f"{prefix}prior.std" not in state_dict
        if f"{prefix}prior.mean" in state_dict and follows != self.prior.follows:
            self._set_prior(None if follows else self.mean.new_ones(()))
            warnings.warn(f"the prior of the loaded weights, {self.prior}, replaces the layer's", stacklevel=2)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _set_prior(self, std: Tensor | None) -> None:
        self.prior = GaussianPrior(self.prior.mean, std)


class CauchyFactor(GaussianFactor):
    """Vectors with q = Cauchy(μ, γ), γ = softplus(ρ), and the prior Cauchy(±1, prior_sigma).

    Args:
        signs: where μ starts, ±1.
        priors: as for `GaussianFactor`, with a fixed `prior_sigma`.

    Raises:
        ValueError: `learn_prior_sigma`.
    """

    family: ClassVar[str] = "cauchy factor"

    def __init__(self, signs: Tensor, priors: Priors) -> None:
        if priors.learn_prior_sigma:
            raise ValueError("Cauchy factors need a fixed prior_sigma: leave out learn_prior_sigma")
        super().__init__(signs, priors)

    def _set_prior(self, std: Tensor | None) -> None:
        if std is None:
            raise ValueError("Cauchy factors need a fixed prior_sigma, and the loaded weights have learned theirs")
        super()._set_prior(std)

    def draw(self, index: Tensor, noise: Noise) -> Tensor:
        """μ + γ ⊙ ε/ε', the ratio of two normals."""
        mean = self.mean[index]
        below = noise(mean)
        below = torch.where(below == 0, torch.finfo(below.dtype).tiny, below)
        return torch.addcmul(mean, self.deviation[index], noise(mean) / below)

    def total_kl(self) -> Tensor:
        """Σ log(((γ + γ_p)² + (μ − μ_p)²) / (4γγ_p)) (Chyzak & Nielsen 2019)."""
        mean, scale = at_least_float32(self.mean), at_least_float32(self.deviation)
        assert isinstance(self.prior.std, Tensor)
        squares = (scale + self.prior.std).square() + (mean - self.prior.mean).square()
        return (squares.log() - scale.log() - (4 * self.prior.std).log()).sum()

    def total_entropy(self) -> Tensor:
        """Σ log(4πγ)."""
        return at_least_float32(self.deviation).log().sum() + math.log(4 * math.pi) * self.mean.numel()


FACTORS: dict[str, type[PointFactor]] = {"gaussian": GaussianFactor, "cauchy": CauchyFactor, "point": PointFactor}


def _known_factor(value: Any) -> str:
    if value not in FACTORS:
        raise ValueError(f"one of {', '.join(FACTORS)}")
    return str(value)


def rank1_lrt(layer: Any, input: Tensor, *more: Any) -> Tensor:
    """`op(x ⊙ s, W) ⊙ r + b` with a component and a draw of r and s per example: exact, and one operation."""
    posterior: Rank1Posterior = layer.posterior["weight"]
    index = posterior.choose((len(input),) if input.dim() + layer.feature_axis > 0 else ())
    inputs = posterior.inputs.draw(index, normal_like)
    output = layer.operation(input * _along(layer, inputs, input), layer.weight, None, *more)
    output = output * _along(layer, posterior.outputs.draw(index, normal_like), output)
    return output if layer.bias is None else output + _along(layer, layer.bias, output)


def _along(layer: Any, values: Tensor, tensor: Tensor) -> Tensor:
    """[n, features] or [features], so shaped that they broadcast to a tensor with examples and features."""
    shape = [1] * tensor.dim()
    shape[layer.feature_axis] = values.shape[-1]
    if values.dim() > 1:
        shape[0] = len(values)
    return values.view(shape).to(tensor.dtype)


class Rank1Posterior(Posterior):
    """W ⊙ (r sᵀ) with a random factor r per output and s per input (Dusenberry et al. 2020), in K components.

    W, the layer's own parameter, and its bias are points, which weight decay holds. q is the mixture of K components
    of r and s that share W, and `kl` is their mean KL(q_k‖p): it is above that of the mixture, by log K at most where
    the layers of a network share the component. Component 0 starts around 1, so that the network starts as that of W,
    and the others around random signs. `location` and `sampling` off take component 0.

    Under 'lrt', every example has a draw of its own, of a component that all layers of a pass share; under 'bbb' a
    pass has one. Draw t of `posterior_draws` is of component t mod K. With K > 1, a component learns from 1/K of the
    examples of an epoch.

    Args:
        weight: W.
        axes: of the weight's outputs and inputs.
        priors: `posterior_rho_initial`; `prior_sigma`, which is that of r and s (the paper has 0.1); or
            `learn_prior_sigma`.
        components: K.
        factors: 'gaussian', 'cauchy' (the paper's best), or 'point' for BatchEnsemble (Wen et al. 2020).

    Raises:
        ValueError: `priors` describes another prior.
    """

    family: ClassVar[str] = "rank1"
    options: ClassVar[dict[str, Option]] = {"components": (1, at_least_one), "factors": ("gaussian", _known_factor)}
    estimators: ClassVar[dict[str, Estimator]] = {"lrt": rank1_lrt, "bbb": bbb}
    pulls_on_mean: ClassVar[bool] = False
    outputs: PointFactor
    inputs: PointFactor

    def __init__(
        self, weight: Tensor, axes: tuple[int, int], priors: Priors, components: int = 1, factors: str = "gaussian"
    ) -> None:
        super().__init__()
        if priors.prior is not None or priors.prior_mu:
            raise ValueError("the rank1 posterior has a prior around 1 of its own: of the prior give prior_sigma alone")
        self.components = components
        self.axes = axes
        for name, axis in (("outputs", axes[0]), ("inputs", axes[1])):
            signs = torch.randint(2, (components, weight.shape[axis]), device=weight.device).to(weight.dtype) * 2 - 1
            signs[0] = 1
            self.add_module(name, FACTORS[factors](signs, priors))

    @classmethod
    def for_parameter(cls, layer: Any, mean: Tensor, priors: Priors, **options: Any) -> Posterior | None:
        """The same for a weight; None for a bias, which is a point."""
        if "lrt" not in layer.estimators or isinstance(layer, nn.Embedding) or getattr(layer, "groups", 1) != 1:
            raise ValueError(
                f"the rank1 posterior is for linear layers and convolutions without groups, not for this "
                f"{type(layer).__name__}: give it another posterior"
            )
        axes = layer.outputs_axis, 1 - layer.outputs_axis
        return cls(mean, axes, priors, **options) if mean.dim() > 1 else None

    @property
    def prior_follows(self) -> bool:
        """Whether the prior's standard deviation is learned."""
        return self.outputs.prior_follows

    def deviations(self) -> list[nn.Parameter]:
        """None beside those of the factors."""
        return []

    def choose(self, shape: Sequence[int]) -> Tensor:
        """Random components, the same in all layers of a forward pass."""

        def choose() -> Tensor:
            device = self.outputs.mean.device
            if self.components == 1:
                return torch.zeros(tuple(shape), dtype=torch.int64, device=device)
            return torch.randint(self.components, tuple(shape), device=device)

        shared = current_pass()
        return choose() if shared is None else shared.draw(("component", self.components, tuple(shape)), choose)

    def _scaled(self, weight: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
        """weight ⊙ (outputs inputsᵀ)."""
        for values, axis in ((outputs, self.axes[0]), (inputs, self.axes[1])):
            shape = [1] * weight.dim()
            shape[axis] = len(values)
            weight = weight * values.view(shape)
        return weight

    def location(self, weight: Tensor) -> Tensor:
        """W ⊙ (μ_r μ_sᵀ) of component 0."""
        return self._scaled(weight, self.outputs.mean[0], self.inputs.mean[0])

    def variance(self, weight: Tensor) -> Tensor:
        """Of the mixture: mean Var_k(w) plus variance of E_k[w]; for Cauchy factors, of normals of their scales.

        Var(w) = W² ((μ_r² + σ_r²) σ_s² + σ_r² μ_s²), a sum of what is not negative, which keeps small variances exact.
        """
        squares, locations, variances = weight.square(), [], []
        for component in range(self.components):
            r, s = (factor.mean[component] for factor in (self.outputs, self.inputs))
            of_r, of_s = (factor.deviation[component].square() for factor in (self.outputs, self.inputs))
            locations.append(self._scaled(weight, r, s))
            variances.append(self._scaled(squares, r.square() + of_r, of_s) + self._scaled(squares, of_r, s.square()))
        return torch.stack(variances).mean(0) + torch.stack(locations).var(0, correction=0)

    def std(self, weight: Tensor) -> Tensor:
        """The root of `variance`."""
        return self.variance(weight).sqrt()

    @torch.no_grad()
    def set_std_in_proportion(self, weight: Tensor, ratio: float) -> None:
        """Set σ of r and s so that every weight of component 0 has the deviation ratio · |W| at the start."""
        for factor in (self.outputs, self.inputs):
            if not isinstance(factor, GaussianFactor):
                raise ValueError("point factors have no standard deviation: leave out moped")
            std = math.sqrt(math.sqrt(1 + ratio**2) - 1)
            factor.rho.copy_(std_to_rho(torch.full_like(factor.rho, std).clamp_min(1e-6)).clamp_min(RHO_FLOOR))

    @property
    def goes_through_moments(self) -> bool:
        """Whether the factors have a variance: Cauchy's have none."""
        return not isinstance(self.outputs, CauchyFactor)

    def factor_moments(self, component: int) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Mean and variance of r and of s of a component; point factors have no variance."""
        return tuple(
            (factor.mean[component], factor.deviation[component].square() if factor.deviations() else None)
            for factor in (self.outputs, self.inputs)
        )

    def silence(self, mask: Tensor) -> None:
        """Nothing is left to do: the variance is 0 where W is."""

    @staticmethod
    def joint_kl(posteriors: Sequence[Rank1Posterior], weights: Sequence[Tensor]) -> Tensor:
        """The mean KL(q_k‖p) of the components in nats, summed over several posteriors."""
        terms = [(each.outputs.total_kl() + each.inputs.total_kl()) / each.components for each in posteriors]
        return torch.stack(terms).sum()

    def entropy(self, weight: Tensor) -> Tensor:
        """The mean H(q_k) of the factors of the components in nats; W, a point, has none."""
        return (self.outputs.total_entropy() + self.inputs.total_entropy()) / self.components

    def sample(self, weight: Tensor) -> Tensor:
        """A draw of a component that all layers of a forward pass share."""
        index = self.choose(())
        factors = (factor.draw(index, normal_like) for factor in (self.outputs, self.inputs))
        return self._scaled(weight, *factors)

    def sampler(self, weight: Tensor) -> Callable[[Noise], Tensor]:
        """See `Posterior.sampler`; call t makes a draw of component t mod K."""
        calls = count()

        def sample(noise: Noise) -> Tensor:
            index = torch.tensor(next(calls) % self.components, device=weight.device)
            return self._scaled(weight, self.outputs.draw(index, noise), self.inputs.draw(index, noise))

        return sample

    def output_moments(self, layer: Any, input: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of every output of the mixture; for Cauchy factors, of normals of their scales.

        With h = op(x ⊙ s, W), an output r h has the variance (μ_r² + σ_r²) Var(h) + σ_r² E[h]². Its Var(h) is the sum
        over the inputs' features c, of which each has one s_c, of σ_c² op(x_c, W)².
        """
        means, variances = [], []
        for component in range(self.components):
            outputs, inputs = self.outputs.mean[component], self.inputs.mean[component]
            of_outputs = self.outputs.deviation[component].square()
            of_inputs = self.inputs.deviation[component].square()
            hidden = layer.operation(input * _along(layer, inputs, input), layer.weight, None, *more)
            of_hidden = torch.zeros_like(hidden)
            for feature, variance in zip(torch.eye(len(inputs), device=input.device), of_inputs, strict=True):
                part = layer.operation(input * _along(layer, feature, input), layer.weight, None, *more)
                of_hidden = of_hidden + variance * part.square()
            factor, variance = (_along(layer, each, hidden) for each in (outputs, of_outputs))
            means.append(hidden * factor + (0 if layer.bias is None else _along(layer, layer.bias, hidden)))
            variances.append((factor.square() + variance) * of_hidden + variance * hidden.square())
        mean, apart = torch.stack(means).mean(0), torch.stack(means).var(0, correction=0)
        return mean, torch.stack(variances).mean(0) + apart
