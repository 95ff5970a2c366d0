"""A posterior for any parameter of any module, by weight sampling: batch norm's scale, a custom layer's own tensor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .passes import SWITCHES, current_pass
from .posteriors import GaussianPosterior, Posterior
from .priors import Priors

Network = TypeVar("Network", bound=nn.Module)


class _SampledPosterior(GaussianPosterior):
    """That of a parameter whose variance no rule of the room `moments` looks for."""

    @property
    def goes_through_moments(self) -> bool:
        """No rule asks for them."""
        return False


class SampledParameter(nn.Module):
    """The parametrization of a parameter by a draw of its Gaussian posterior, or by its mean.

    Args:
        mean: the parameter, which becomes the posterior mean.
        priors: as for `GaussianPosterior`.

    Attributes:
        sampling: as of `BayesianLayer`.
    """

    def __init__(self, mean: Tensor, priors: Priors) -> None:
        super().__init__()
        self.posterior: Posterior = _SampledPosterior(mean, priors)
        self.sampling = True

    def forward(self, mean: Tensor) -> Tensor:
        """A draw, the same one throughout a forward pass of the network; the mean while `sampling` is off."""
        switches = SWITCHES.get()
        if not (self.sampling if switches is None else switches.get(self, self.sampling)):
            return mean
        shared = current_pass()
        if shared is None:
            return self.posterior.sample(mean)
        return shared.draw((id(mean), "sample"), self.posterior.sample, mean)


def sample_parameters(
    module: Network,
    names: str | Sequence[str],
    *,
    priors: Priors | Mapping[str, Any] | None = None,
    inplace: bool = False,
) -> Network:
    """Give parameters anywhere in `module` a Gaussian posterior, of which every forward pass takes one draw.

    The forward of no layer changes, so it works for any module; the estimator is weight sampling, and no other. KL,
    draws, MOPED and the optimizers take these posteriors as those of Bayesian layers; IVON and prediction by moments
    refuse them. Call the network through a `ModuleWrapper`, or after `share_draws`, so that a
    parameter that a forward pass reads twice has one value.

    Example:
        >>> net = sample_parameters(to_bayesian(net), ["*.bn*.weight", "*.bn*.bias"], priors={"prior_mu": 1.0})

    Args:
        module: any network.
        names: patterns of the dotted names of parameters, such as 'bn1.weight' or '*.scale'.
        priors: as for `BBBLinear`.
        inplace: change `module` itself rather than a copy.

    Returns:
        The network.

    Raises:
        ValueError: a pattern that matches no parameter without a posterior.
    """
    priors = Priors.parse(priors)
    if priors.posterior_mu_initial is not None:
        raise ValueError("leave out posterior_mu_initial: the parameters of the module are the posterior means")
    net = module if inplace else copy.deepcopy(module)
    owners = {
        f"{path}.{name}" if path else name: (layer, name)
        for path, layer in net.named_modules()
        if not hasattr(layer, "posterior")
        and not isinstance(layer, parametrize.ParametrizationList)
        and _is_free(layer)
        for name, parameter in layer.named_parameters(recurse=False)
        if parameter.is_floating_point() and ".posterior." not in f".{path}."
    }
    patterns = [names] if isinstance(names, str) else list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in owners):
            raise ValueError(f"{pattern!r} matches no parameter without a posterior: known are {', '.join(owners)}")
    for name, (layer, key) in owners.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parametrize.register_parametrization(layer, key, SampledParameter(getattr(layer, key), priors))
    return net


def _is_free(layer: nn.Module) -> bool:
    """Whether no parameter of the layer has another parametrization, such as a weight norm."""
    parametrizations = layer._modules.get("parametrizations")
    lists = parametrizations.values() if isinstance(parametrizations, nn.ModuleDict) else ()
    return all(isinstance(next(each.children()), SampledParameter) for each in lists)


def remove_sampled(module: nn.Module) -> None:
    """Make the parameters anywhere in `module` that `sample_parameters` gave a posterior plain again: their means.

    Torch's own `remove_parametrizations` would do it to the copies of the module too, which share its classes.
    """
    for layer in module.modules():
        if parametrize.is_parametrized(layer) and _is_free(layer):
            parametrizations = layer._modules.pop("parametrizations")
            assert isinstance(parametrizations, nn.ModuleDict)
            layer.__class__ = type(layer).__mro__[1]
            for name, each in parametrizations.items():
                layer.register_parameter(name, each.original)  # type: ignore[arg-type]
