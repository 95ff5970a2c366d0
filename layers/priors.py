"""Priors over a layer's weights, and the settings that a layer takes about its prior and its posterior's start."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal, constraints

from .kernels import gaussian_sums, normal_like

PlainDistribution = dict[str, Any]  # family and arguments as plain values, which files and command lines can hold


class Prior(nn.Module):
    """p(w), the distribution of a layer's weights before any data are seen.

    A prior is a module, so its tensors move with the layer, are saved with it and may be learned. A prior of your own
    defines `kl`; give an instance as `priors={"prior": …}`, and every weight tensor gets a copy.
    """

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL(N(mean, std²)‖p) in nats, summed over the weights.

        Args:
            mean: posterior means, of the weight's shape.
            std: posterior standard deviations, of the weight's shape.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def pull(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor | float]:
        """The expected derivatives of −log p under N(mean, std²): the gradient, and the diagonal of the Hessian.

        Of a Gaussian prior with precision matrix P they are P(μ − μ_p) and diag P. The IVON optimizer takes them; a
        prior without them trains by gradients of the KL.

        Args:
            mean: posterior means, of the weight's shape.
            std: posterior standard deviations, of the weight's shape.
        """
        raise NotImplementedError

    def for_shape(self, shape: Sequence[int]) -> Prior:
        """The prior for a weight tensor of this shape: by default itself."""
        return self

    @property
    def follows(self) -> bool:
        """Whether the prior follows the posterior, so that no scale of the weights is preferred."""
        return False

    @property
    def shape(self) -> torch.Size:
        """The shape of the prior's own tensors, which broadcasts to that of the weight."""
        return torch.Size()

    @property
    def description(self) -> PlainDistribution:
        """The family and its numbers as plain values; empty for a prior of your own."""
        return {}

    @property
    def group(self) -> Hashable:
        """Priors of the same group treat every weight alike, so their KL may be one sum; None to stand alone."""
        return None


class GaussianPrior(Prior):
    """N(mean, std²), independent over the weights.

    Args:
        mean: a number, or a tensor that broadcasts to the weight.
        std: a number above 0, a tensor of such that broadcasts to the weight, or None for the one that is best for the
            posterior: empirical Bayes. It is σ_p² = mean of σ² + (μ − μ_p)² over the tensor, where the derivative of
            the KL by σ_p is 0, and follows the posterior at every evaluation.
        per_channel: of the best one, take one per index of the first axis, which is the output channel unless a
            convolution is transposed; a bias, which has one number per channel, has one for all of it.

    Raises:
        ValueError: a number that is not finite, or a standard deviation that is not above 0.
    """

    mean: float | Tensor
    std: float | Tensor | None

    def __init__(self, mean: float | Tensor = 0.0, std: float | Tensor | None = 1.0, per_channel: bool = False) -> None:
        super().__init__()
        for name, value, bound in (("mean", mean, -math.inf), ("std", std, 0.0)):
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
                is_valid = value.is_meta or bool((value.isfinite() & (value > bound)).all())
            else:
                setattr(self, name, value if value is None else float(value))
                is_valid = value is None or (math.isfinite(value) and value > bound)
            if not is_valid:
                raise ValueError(f"a Gaussian prior needs a finite mean and a std above 0, got {name}={value}")
        self.per_channel = per_channel and std is None

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL = Σ log(σ_p/σ) + (σ² + (μ − μ_p)²) / (2σ_p²) − ½, in nats.

        From ∫ q log q = −½ log(2πeσ²) and ∫ q log p = −½ log(2πσ_p²) − (σ² + (μ−μ_p)²) / (2σ_p²). At the best σ_p the
        last two terms cancel.
        """
        prior_mean, prior_std = self.mean, self.std
        if self.per_channel:
            variances = self._best_variance(mean, std)
            return 0.5 * variances.log().sum() * (mean.numel() / variances.numel()) - std.log().sum()
        if isinstance(prior_mean, Tensor):
            mean, prior_mean = mean - prior_mean, 0.0
        if isinstance(prior_std, Tensor):  # in units of the prior's own deviations
            mean, std, prior_mean = (mean - prior_mean) / prior_std, std / prior_std, 0.0
        squares, logs = gaussian_sums(mean.flatten(), std.flatten(), prior_mean)
        if prior_std is None:
            return 0.5 * mean.numel() * (squares / mean.numel()).log() - logs
        unit = 1.0 if isinstance(prior_std, Tensor) else prior_std
        return squares / (2 * unit**2) - logs + mean.numel() * (math.log(unit) - 0.5)

    def pull(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor | float]:
        """(μ − μ_p)/σ_p² and 1/σ_p²."""
        precision = self._best_variance(mean, std) ** -1 if self.std is None else self.std**-2
        return (mean - self.mean) * precision, precision

    def _best_variance(self, mean: Tensor, std: Tensor) -> Tensor:
        """The mean of σ² + (μ − μ_p)², which broadcasts to the weight."""
        squares = (mean - self.mean).square() + std.square()
        if self.per_channel and mean.dim() > 1:
            return squares.mean(tuple(range(1, mean.dim())), keepdim=True)
        return squares.mean()

    @property
    def follows(self) -> bool:
        """Whether the standard deviation is the best one."""
        return self.std is None

    @property
    def shape(self) -> torch.Size:
        """The shape that the mean and the standard deviation broadcast to."""
        return torch.broadcast_shapes(*(v.shape for v in (self.mean, self.std) if isinstance(v, Tensor)))

    @property
    def group(self) -> Hashable:
        """The mean and the standard deviation where they are numbers."""
        return (self.mean, self.std) if isinstance(self.mean, float) and isinstance(self.std, float) else None

    def centered(self, mean: Tensor) -> GaussianPrior:
        """The same prior with another mean."""
        return GaussianPrior(mean.detach().clone(), self.std, self.per_channel)

    @property
    def description(self) -> PlainDistribution:
        """The family, and what is no tensor among mean and standard deviation; the best deviation is None."""
        plain = {name: getattr(self, name) for name in ("mean", "std") if name not in self._buffers}
        return {"family": "Gaussian", **plain, **({"per_channel": self.per_channel} if self.std is None else {})}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.description.items():
            if isinstance(value, float):
                destination[prefix + name] = torch.tensor(value, dtype=torch.float64)
        if self.per_channel:
            destination[prefix + "per_channel"] = torch.tensor(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in ("mean", "std", "log_std", "per_channel"):
            if name not in self._buffers:  # `prior_from_state` made the prior by it
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The mean and the standard deviation, as `print` shows them."""
        texts = (
            f"{name}={'tensor' if isinstance(v, Tensor) else v}" for name, v in (("mean", self.mean), ("std", self.std))
        )
        return ", ".join([*texts, *(["per_channel=True"] if self.per_channel else [])])


class CorrelatedGaussianPrior(Prior):
    """N(mean, covariance) over the positions of a kernel, independent over (output, input) pairs.

    For a convolution, kernels under it are as smooth as the covariance says (Fortuin et al. 2022); with that of the
    inputs' patches or pixels it is the empirical-covariance prior of Izmailov et al. 2021. A bias,
    which has no positions, has an independent N(mean, variance), at the mean's and the variances' averages.

    Args:
        covariance: [d, d], positive definite, d the number of positions: 25 for a kernel of 5×5.
        kernel_size: the last axes of the weight, d positions in all; None for a square kernel.
        mean: a number, or a tensor of the kernel's shape.

    Raises:
        ValueError: a covariance that is not symmetric and positive definite, or of another size than the kernel.
    """

    mean: Tensor
    covariance: Tensor
    precision: Tensor
    log_det: Tensor

    def __init__(
        self, covariance: Tensor, kernel_size: Sequence[int] | None = None, mean: float | Tensor = 0.0
    ) -> None:
        super().__init__()
        side = math.isqrt(len(covariance)) if covariance.dim() else 0
        kernel = (side, side) if kernel_size is None else tuple(kernel_size)
        if covariance.shape != 2 * (math.prod(kernel),):
            raise ValueError(f"a covariance of shape {tuple(covariance.shape)} does not fit a kernel {kernel}")
        wide = covariance.detach().double()
        factor, failed = torch.linalg.cholesky_ex(wide)
        if failed or not torch.allclose(wide, wide.mT) or not factor.isfinite().all():
            raise ValueError("the covariance of a correlated prior must be symmetric and positive definite")
        self.register_buffer("mean", torch.as_tensor(mean, dtype=covariance.dtype).expand(kernel).clone())
        self.register_buffer("covariance", covariance.detach().clone())
        self.register_buffer("precision", torch.cholesky_inverse(factor), persistent=False)
        self.register_buffer("log_det", 2 * factor.diagonal().log().sum(), persistent=False)

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """½ Σ (P_ii σ_i² + (μ − m)ᵀP(μ − m) − d + log|Σ|) − Σ log σ in nats, P = Σ⁻¹, summed over the kernels."""
        pull, precision = self.pull(mean, std)
        squares = (precision * std.square()).sum() + (pull * (mean - self.mean)).sum()
        constant = mean.numel() * (self.log_det / len(self.covariance) - 1)
        return 0.5 * (squares + constant) - std.log().sum()

    def pull(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor | float]:
        """P(μ − m), and diag P."""
        distance = (mean - self.mean).reshape(-1, len(self.covariance))
        precision = self.precision.to(mean.dtype)
        return (distance @ precision).view(mean.shape), precision.diagonal().view(self.mean.shape)

    def for_shape(self, shape: Sequence[int]) -> Prior:
        """This prior; for a bias the independent one."""
        if len(shape) > 1:
            return self
        return GaussianPrior(float(self.mean.mean()), float(self.covariance.diagonal().mean().sqrt()))

    @property
    def shape(self) -> torch.Size:
        """The shape of the kernel."""
        return self.mean.shape

    @property
    def description(self) -> PlainDistribution:
        """The family."""
        return {"family": "CorrelatedGaussian"}

    def extra_repr(self) -> str:
        """The kernel, as `print` shows it."""
        return f"kernel_size={tuple(self.mean.shape)}"


class DistributionPrior(Prior):
    """Any distribution of `torch.distributions` over the real numbers.

    Args:
        distribution: the distribution, whose batch and event shape broadcast to the weight, or its plain values such
            as {'family': 'Laplace', 'loc': 0.0, 'scale': 0.1}.

    Raises:
        ValueError: an unknown family, or a distribution that does not allow every real number.
    """

    def __init__(self, distribution: Distribution | Mapping[str, Any]) -> None:
        super().__init__()
        self.plain = as_plain(distribution)
        support: Any = as_distribution(self.plain).support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if support is not constraints.real:
            raise ValueError(f"a weight may be any real number, which the prior {distribution} does not allow")

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL(N(mean, std²)‖p) in nats: torch's closed form, or else an unbiased estimate by one draw.

        KL = −H(q) − E_q[log p], with H(q) = Σ ½ log(2πeσ²) exact and the expectation by one draw.
        """
        prior = as_distribution(self.plain, like=mean)
        try:
            return distributions.kl_divergence(Normal(mean, std, validate_args=False), prior).sum()
        except NotImplementedError:
            entropy = std.log().sum() + 0.5 * math.log(2 * math.pi * math.e) * std.numel()
            return -entropy - prior.log_prob(torch.addcmul(mean, std, normal_like(mean))).sum()

    @property
    def shape(self) -> torch.Size:
        """Batch and event shape of the distribution."""
        distribution = as_distribution(self.plain)
        return distribution.batch_shape + distribution.event_shape

    @property
    def description(self) -> PlainDistribution:
        """The distribution as plain values."""
        return self.plain

    def get_extra_state(self) -> PlainDistribution:
        """The description."""
        return self.plain

    def set_extra_state(self, state: Any) -> None:
        """Nothing is left to set: `prior_from_state` made the prior by its state."""

    def extra_repr(self) -> str:
        """The distribution, as `print` shows it."""
        return ", ".join(f"{name}={value}" for name, value in self.plain.items())


def prior_from_state(state: Mapping[str, Any]) -> Prior | None:
    """The prior that a part of a `state_dict` describes, its tensors' values still to be loaded.

    Args:
        state: the entries of the prior, by their names within it: `mean` and `std` of a Gaussian one, without `std`
            (or, of an earlier version, with a `log_std`) if it is the best one, with `per_channel` if that is one per
            output channel; `mean` and `covariance` of a correlated one; or the description of another distribution as
            `_extra_state`.

    Returns:
        The prior, or None where the state does not say: of a plain network, or of a prior of your own.

    Raises:
        ValueError: an unknown family, or arguments that it does not take.
    """
    if "_extra_state" in state:
        return DistributionPrior(state["_extra_state"])
    if {"mean", "covariance"} <= state.keys():
        return CorrelatedGaussianPrior(state["covariance"], state["mean"].shape, state["mean"])
    if "mean" not in state:
        return None
    numbers = {
        name: value.clone() if value.dim() else value.item() for name, value in state.items() if name in ("mean", "std")
    }
    std = None if "log_std" in state else numbers.get("std")
    return GaussianPrior(numbers["mean"], std, "per_channel" in state)


@dataclass(frozen=True)
class Priors:
    """The prior of every weight and where its posterior starts; `priors={…}` of a layer, checked.

    Attributes:
        prior_mu: mean of the Gaussian prior.
        prior_sigma: standard deviation of the Gaussian prior, above zero.
        learn_prior_sigma: take in its place the deviation that is best for the posterior, one per weight tensor, or
            one per output channel with "channel": empirical Bayes, in closed form (see `GaussianPrior`). With few data
            and β = 1 it may draw all weights to 0 before they have learned anything, which a KL that warms up prevents.
        prior: another prior instead of the Gaussian one: a `Prior`, any of `torch.distributions` over the real
            numbers whose batch and event shape broadcast to the weight, `scale_mixture(…)`, or a dict that says the
            same, such as {'family': 'Laplace', 'loc': 0.0, 'scale': 0.1}.
        posterior_mu_initial: (mean, std) of the normal that the posterior means start from; None
            keeps `torch.nn`'s own initialization by fan-in.
        posterior_rho_initial: (mean, std) of the normal that ρ starts from, σ = softplus(ρ).
        posterior_log_alpha_initial: where log α of the alpha posterior starts.
    """

    prior_mu: float = 0.0
    prior_sigma: float = 1.0
    learn_prior_sigma: bool | Literal["channel"] = False
    prior: Prior | Distribution | Mapping[str, Any] | None = None
    posterior_mu_initial: tuple[float, float] | None = None
    posterior_rho_initial: tuple[float, float] = (-5.0, 0.1)
    posterior_log_alpha_initial: float = -5.0

    def __post_init__(self) -> None:
        for name in ("prior_mu", "prior_sigma", "posterior_log_alpha_initial"):
            _require_finite(name, getattr(self, name))
        if self.prior_sigma <= 0:
            raise ValueError(f"prior_sigma must be above 0, got {self.prior_sigma}")
        if not isinstance(self.learn_prior_sigma, bool) and self.learn_prior_sigma != "channel":
            raise ValueError(f"learn_prior_sigma must be True, False or 'channel', got {self.learn_prior_sigma!r}")
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
        if self.prior is not None:
            if self.learn_prior_sigma or (self.prior_mu, self.prior_sigma) != (0.0, 1.0):
                raise ValueError("prior replaces prior_mu, prior_sigma and learn_prior_sigma: leave them out")
            self.make_prior()

    @classmethod
    def parse(cls, priors: Priors | Mapping[str, Any] | None) -> Priors:
        """The priors that a user's dict (or None, for the defaults) describes.

        Raises:
            ValueError: an unknown key (the nearest known one is named) or a value out of range.
        """
        if isinstance(priors, Priors):
            return priors
        priors = {} if priors is None else priors
        if not isinstance(priors, Mapping):
            raise ValueError(f"priors must be a dict, got {priors!r}")
        known = [field.name for field in fields(cls)]
        for key in priors:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)[0]
                raise ValueError(f"unknown prior {key!r}: did you mean {near!r}? Known: {known}")
        return cls(**priors)

    def make_prior(self) -> Prior:
        """A prior of its own for one weight tensor."""
        if isinstance(self.prior, Prior):
            return copy.deepcopy(self.prior)
        if self.prior is not None:
            return DistributionPrior(self.prior)
        std = None if self.learn_prior_sigma else self.prior_sigma
        return GaussianPrior(self.prior_mu, std, self.learn_prior_sigma == "channel")


def _require_finite(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(f"{name} must be a number, got {number!r}")
    try:
        finite = math.isfinite(number)
    except OverflowError:  # an integer that no float holds
        finite = False
    if not finite:
        raise ValueError(f"{name} must be finite, got {number}")


def scale_mixture(pi: float, sigma1: float, sigma2: float) -> MixtureSameFamily:
    """π N(0, σ₁²) + (1 − π) N(0, σ₂²), the scale mixture prior of Blundell et al. 2015, eq. 7."""
    if not (0 < pi < 1 and sigma1 > 0 and sigma2 > 0):
        raise ValueError(f"expected 0 < pi < 1 and deviations above 0, got {pi}, {sigma1} and {sigma2}")
    components = Normal(torch.zeros(2), torch.tensor([float(sigma1), float(sigma2)]))
    return MixtureSameFamily(Categorical(torch.tensor([pi, 1.0 - pi])), components)


def as_plain(distribution: Distribution | Mapping[str, Any]) -> PlainDistribution:
    """The family and the arguments of a distribution as numbers, lists and dicts.

    Raises:
        ValueError: not a distribution that its constructor's arguments describe.
    """
    if isinstance(distribution, Mapping):
        return dict(distribution)
    if not isinstance(distribution, Distribution) or not hasattr(distributions, type(distribution).__name__):
        raise ValueError(f"prior must be of torch.distributions, got {distribution!r}")
    plain: PlainDistribution = {"family": type(distribution).__name__}
    for name in inspect.signature(type(distribution)).parameters:
        value = vars(distribution).get(name, vars(distribution).get(f"_{name}"))
        if type(inspect.getattr_static(distribution, name, None)) is property:  # a lazy_property only repeats another
            value = getattr(distribution, name)
        if name == "validate_args" or value is None or (name == "logits" and "probs" in plain):
            continue
        if isinstance(value, Distribution):
            plain[name] = as_plain(value)
        else:
            plain[name] = value.tolist() if isinstance(value, Tensor) else value
    return plain


def as_distribution(plain: Mapping[str, Any], like: Tensor | None = None) -> Distribution:
    """The distribution that `as_plain` describes, on the device and in the dtype of `like`.

    Raises:
        ValueError: an unknown family, or arguments that it does not take.
    """
    arguments = {name: value for name, value in plain.items() if name != "family"}
    family = plain.get("family")
    if family == "ScaleMixture":
        try:
            return as_distribution(as_plain(scale_mixture(**arguments)), like)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"the prior {dict(plain)} needs pi, sigma1 and sigma2") from error
    kind: Any = getattr(distributions, str(family), None)
    if not (isinstance(kind, type) and issubclass(kind, Distribution)) or kind.support is Distribution.support:
        raise ValueError(
            f"unknown family {family!r} of the prior: expected one of torch.distributions, or ScaleMixture"
        )
    options: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
    try:
        values: dict[str, Any] = {
            name: as_distribution(value, like)
            if isinstance(value, Mapping)
            else torch.tensor(value, **options)
            if isinstance(value, (float, list))
            else value
            for name, value in arguments.items()
        }
        return kind(**values, validate_args=like is None)
    except (TypeError, ValueError, AttributeError, AssertionError, OverflowError) as error:  # a family's own checks
        raise ValueError(f"the prior {dict(plain)} cannot be made: {str(error).splitlines()[0]}") from error
