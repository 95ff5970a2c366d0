"""The prior of a layer's weights, and where their posterior starts."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal, constraints

PlainDistribution = dict[str, Any]  # family and arguments as plain values, which files and command lines can hold


@dataclass(frozen=True)
class Priors:
    """The prior of every weight and where its posterior starts; `priors={…}` of a layer, checked.

    Attributes:
        prior_mu: mean of the Gaussian prior.
        prior_sigma: standard deviation of the Gaussian prior, above zero.
        learn_prior_sigma: learn that deviation with the posterior, one a weight tensor, from `prior_sigma`
            on: empirical Bayes.
        prior: another prior instead of the Gaussian one: any of `torch.distributions` over the real numbers
            whose batch and event shape broadcast against the weight, `scale_mixture(…)`, or a dict that says the
            same, such as {'family': 'Laplace', 'loc': 0.0, 'scale': 0.1}.
        posterior_mu_initial: (mean, std) of the normal that the posterior means start from; None
            keeps `torch.nn`'s own initialization by fan-in.
        posterior_rho_initial: (mean, std) of the normal that ρ starts from, σ = softplus(ρ).
        posterior_log_alpha_initial: where log α of the alpha posterior starts.
    """

    prior_mu: float = 0.0
    prior_sigma: float = 1.0
    learn_prior_sigma: bool = False
    prior: Distribution | Mapping[str, Any] | None = None
    posterior_mu_initial: tuple[float, float] | None = None
    posterior_rho_initial: tuple[float, float] = (-5.0, 0.1)
    posterior_log_alpha_initial: float = -5.0

    def __post_init__(self) -> None:
        for name in ("prior_mu", "prior_sigma", "posterior_log_alpha_initial"):
            _require_finite(name, getattr(self, name))
        if self.prior_sigma <= 0:
            raise ValueError(f"prior_sigma must be above 0, got {self.prior_sigma}")
        if not isinstance(self.learn_prior_sigma, bool):
            raise ValueError(f"learn_prior_sigma must be True or False, got {self.learn_prior_sigma!r}")
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
                raise ValueError("prior takes the place of prior_mu, prior_sigma and learn_prior_sigma: leave them out")
            support: Any = as_distribution(as_plain(self.prior)).support
            while hasattr(support, "base_constraint"):
                support = support.base_constraint
            if support is not constraints.real:
                raise ValueError(f"a weight may be any real number, which the prior {self.prior} does not allow")

    @classmethod
    def parse(cls, given: Priors | Mapping[str, Any] | None) -> Priors:
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
        if type(inspect.getattr_static(distribution, name, None)) is property:  # not a lazy one, which says it anew
            value = getattr(distribution, name)
        if name == "validate_args" or value is None or (name == "logits" and "probs" in plain):
            continue
        if isinstance(value, Distribution):
            plain[name] = as_plain(value)
        else:
            plain[name] = value.tolist() if isinstance(value, Tensor) else value
    return plain


def as_distribution(plain: Mapping[str, Any], like: Tensor | None = None) -> Distribution:
    """The distribution that `as_plain` wrote down, on the device and in the dtype of `like`.

    Raises:
        ValueError: an unknown family, or arguments that it does not take.
    """
    arguments = {name: value for name, value in plain.items() if name != "family"}
    family = plain.get("family")
    if family == "ScaleMixture":
        try:
            return as_distribution(as_plain(scale_mixture(**arguments)), like)
        except TypeError as error:
            raise ValueError(f"the prior {dict(plain)} needs pi, sigma1 and sigma2") from error
    kind: Any = getattr(distributions, str(family), None)
    if not (isinstance(kind, type) and issubclass(kind, Distribution)):
        raise ValueError(f"unknown family {family!r} of the prior: one of torch.distributions, or ScaleMixture")
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
    except (TypeError, ValueError) as error:
        raise ValueError(f"the prior {dict(plain)} cannot be made: {str(error).splitlines()[0]}") from error
