"""Turns plain `torch.nn` layers anywhere in a network into Bayesian ones, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from .base import COUNTERPARTS, BayesianLayer, bayesian_counterpart, share_draws, weight_posteriors
from .parameters import remove_sampled
from .passes import one_pass
from .posteriors import Family, Posterior
from .priors import Priors

Network = TypeVar("Network", bound=nn.Module)
Selection = str | Sequence[str] | Callable[[str, nn.Module], bool]


def to_bayesian(
    module: Network,
    layers: Selection = "all",
    *,
    layer_type: str | None = None,
    posterior: str | Mapping[str, Any] = "gaussian",
    alpha_shape: Sequence[int] | None = None,
    priors: Priors | Mapping[str, Any] | None = None,
    moped: float | None = None,
    prior_at_means: bool = False,
    inplace: bool = False,
) -> Network:
    """Replace plain layers of `module` by Bayesian ones, with its weights as posterior means; its forward stays.

    Afterwards `kl_divergence(module)` is the KL of the whole network, and `ModuleWrapper(module)` is a network whose
    call returns (output, kl). Dotted names of parameters stay, modules and tensors that were shared stay shared, and
    a shared tensor has one posterior. Layers without a Bayesian counterpart (batch norm, say) stay as they are:
    `deterministic_layers(module)` lists them.

    Args:
        module: any network.
        layers: which layers become Bayesian: 'all', 'last' (the last one in the order of their construction), a
            pattern of dotted names such as 'layer4.*', several patterns, or a function of (dotted name, layer).
        layer_type: the estimator, which layers that only support 'bbb' (recurrent, attention) replace by that one; None
            for the first that works with the layer and the posterior.
        posterior: as for `BBBLinear`.
        alpha_shape: as for `BBBLinear`.
        priors: as for `BBBLinear`.
        moped: δ sets every σ to δ|w|, and 'posterior_rho_initial' has no effect (Krishnan et al. 2020).
        prior_at_means: center the Gaussian prior of every weight at the weight's present value, as MOPED does.
        inplace: change `module` itself rather than a copy.

    Returns:
        The Bayesian network.

    Raises:
        ValueError: no layer is selected, or a layer refuses the settings.
    """
    family, priors = Family.parse(posterior, alpha_shape), Priors.parse(priors)
    if priors.posterior_mu_initial is not None:
        raise ValueError("leave out posterior_mu_initial: the weights of the module are the posterior means")
    net = module if inplace else copy.deepcopy(module)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in _selected(net, layers).items():
        counterpart = COUNTERPARTS[type(layer)]
        is_unsupported = layer_type in BayesianLayer.estimators and layer_type not in counterpart.estimators
        estimator = "bbb" if is_unsupported else layer_type
        replacements[layer] = bayesian_counterpart(layer, counterpart, family, priors, estimator, name or None)
    for layer in replacements.values():
        start_at_means(layer, moped, prior_at_means)
    net = _replace(net, replacements)
    list(weight_posteriors(net))  # which gives a shared tensor one posterior
    share_draws(net)
    for parent in net.modules():
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # of unpadded positions in evaluation, which few operations accept
    return net


def start_at_means(module: nn.Module, moped: float | None = None, prior_at_means: bool = False) -> None:
    """Start every posterior anywhere in `module` from its means: MOPED (Krishnan et al. 2020).

    Args:
        module: a network with Bayesian layers.
        moped: δ sets every σ to δ|μ|; None leaves it.
        prior_at_means: center the Gaussian prior of every weight at μ.

    Raises:
        ValueError: δ is not above 0, or a prior cannot be centered.
    """
    if moped is not None and not 0 < moped < float("inf"):
        raise ValueError(f"moped must be above 0 and finite, got {moped}")
    for _, mean, posterior in weight_posteriors(module):
        if moped is not None:
            posterior.set_std_in_proportion(mean, moped)
        if prior_at_means:
            posterior.center_prior(mean)


def posterior_as_prior(module: nn.Module) -> None:
    """Make the posterior of every weight anywhere in `module` its prior, for data that come next.

    The posterior after some data is the prior of the data that follow: p(w|D₁, D₂) ∝ p(D₂|w) p(w|D₁). With q in place
    of p(w|D₁), training goes on from everything that q knows of D₁ without seeing it again (Nguyen et al. 2018, eq. 2).
    Whatever prior a weight had before, it is now the Gaussian N(μ, σ²) at the present μ and σ, as tensors that are
    saved with the weights, and the KL is 0 until μ or σ moves.

    Parameters without a posterior, as those of batch norm, have no prior: they keep nothing of the earlier data.

    Args:
        module: a network whose posteriors are independent normals, gaussian or k_tied.

    Raises:
        ValueError: a weight has another posterior, or no weight has one; no prior has changed then.
    """
    priors = [(posterior, posterior.as_prior(mean)) for _, mean, posterior in weight_posteriors(module)]
    if not priors:
        raise ValueError("the network has no Bayesian layers, so it has no posterior that can become the prior")
    for posterior, prior in priors:
        posterior.prior = prior


def to_deterministic(module: Network, sample: bool = False) -> Network:
    """Copy `module` with the plain `torch.nn` layer in place of every Bayesian one.

    Parameters keep their dotted names, and modules and tensors that were shared stay shared. The KL of
    the copy is 0.

    Args:
        module: a network with Bayesian layers.
        sample: take one draw of all weights rather than their posterior means.

    Returns:
        The copy.
    """
    twin = copy.deepcopy(module)
    with torch.no_grad(), one_pass(twin):
        for _, mean, posterior in weight_posteriors(twin):
            mean.copy_(posterior.sample(mean) if sample else posterior.location(mean))
    remove_sampled(twin)
    return _replace(twin, {layer: layer.plain() for layer in twin.modules() if isinstance(layer, BayesianLayer)})


def deterministic_layers(module: nn.Module) -> list[str]:
    """Dotted names and classes of the layers of `module` whose weights have no posterior."""
    posteriors = {id(posterior) for _, _, posterior in weight_posteriors(module)}
    return [
        f"{name} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if not isinstance(layer, BayesianLayer)
        and id(layer) not in posteriors
        and not isinstance(layer, (Posterior, ParametrizationList))
        and any(True for _ in layer.parameters(recurse=False))
    ]


def _selected(net: nn.Module, layers: Selection) -> dict[str, nn.Module]:
    """The layers that become Bayesian, by dotted name; none of them is inside another."""
    candidates: dict[str, nn.Module] = {}
    for name, layer in net.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in candidates)
        counterpart = COUNTERPARTS.get(type(layer))
        if counterpart and not inner and not counterpart.obstacle(layer):
            candidates[name] = layer
    if callable(layers):
        selected = {name: layer for name, layer in candidates.items() if layers(name, layer)}
    elif layers == "all":
        selected = candidates
    elif layers == "last":
        selected = dict(list(candidates.items())[-1:])
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in candidates):
                raise ValueError(f"layers={pattern!r} selects no layer: {_known(candidates)}")
        selected = {name: layer for name, layer in candidates.items() if any(fnmatchcase(name, p) for p in patterns)}
    if not selected:
        raise ValueError(f"layers={layers!r} selects no layer: {_known(candidates)}")
    return selected


def _known(candidates: Mapping[str, nn.Module]) -> str:
    names = ", ".join(candidates)
    return f"the network has {names}" if names else "the network has no layer with a Bayesian counterpart"


def _replace(net: Network, replacements: Mapping[nn.Module, nn.Module]) -> Network:
    """Put the replacements wherever the layers are, also inside other replacements."""
    for parent in [*net.modules(), *replacements.values()]:
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(net, net)  # type: ignore[return-value]
